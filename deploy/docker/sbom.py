"""Write what is installed in this image, Debian packages and Python distributions, as CycloneDX 1.5: `sbom.py FILE`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote


def debian() -> Iterator[dict[str, Any]]:
    """Every installed package of the image's distribution."""
    for release in Path("/etc/os-release").read_text().splitlines():
        if release.startswith("ID="):
            name = release.removeprefix("ID=").strip('"')
    show = ["dpkg-query", "--show", "--showformat=${Package} ${Version} ${Architecture}\n"]
    listed = subprocess.run(show, capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        package, version, architecture = line.split()
        purl = f"pkg:deb/{name}/{package}@{quote(version)}?arch={architecture}"
        yield {"type": "library", "name": package, "version": version, "purl": purl, "bom-ref": purl}


def python() -> Iterator[dict[str, Any]]:
    """Every distribution of the environment that runs this."""
    for each in metadata.distributions():
        name = each.metadata["Name"]
        purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(each.version)}"
        licence = each.metadata["License-Expression"]
        licences = {"licenses": [{"expression": licence}]} if licence else {}
        yield {"type": "library", "name": name, "version": each.version, "purl": purl, "bom-ref": purl} | licences


def main() -> None:
    target = Path(sys.argv[1])
    version = metadata.version("inferflux")
    parts = {each["bom-ref"]: each for each in (*debian(), *python())}
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "inferflux", "version": version}},
        "components": [parts[ref] for ref in sorted(parts)],
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(bom, indent=1) + "\n")


if __name__ == "__main__":
    main()
