"""The operators' guides: every error code has its row, and what they name is there."""

from __future__ import annotations

import re

from harness.checkout import ROOT, text

from inferflux.broker.errors import Code


def test_every_error_code_has_its_row() -> None:
    table = text("docs/Troubleshooting.md").partition("## Error codes")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", table, re.MULTILINE)
    assert [code for code, _, _ in found if code not in set(Code)] == []
    assert {code for code, *rest in found if all(rest)} == set(Code)
    assert len(found) == len(set(Code))


def test_files_that_the_guides_name_are_there() -> None:
    for guide in ("docs/Operations.md", "docs/AdminGuide.md", "docs/Troubleshooting.md"):
        for path in re.findall(r"`((?:deploy|charts|scripts)/[\w./-]+)`", text(guide)):
            # What an operator makes is not in the checkout.
            assert (ROOT / path.rstrip("/.")).exists() or "secrets" in path, f"{guide}: {path}"


def test_the_deployment_matrix_names_every_way() -> None:
    matrix = text("docs/AdminGuide.md").partition("## Deployment")[2].partition("\n### ")[0]
    for command in (
        "./scripts/run_dev.sh --config config/server.yaml",
        "docker build -t inferflux . && docker run -p 8080:8080 inferflux",
        "helm upgrade --install inferflux charts/inferflux -f deploy/values.yaml",
        "terraform -chdir=deploy/terraform apply",
    ):
        assert f"`{command}`" in matrix
