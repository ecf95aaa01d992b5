"""The Dockerfile: linted, pinned, and its images as locked up as the guide says."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from harness.checkout import ROOT, text

SMALL = ("api", "worker-cpu", "worker-cuda")


def test_the_dockerfile_has_no_lint() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def stages() -> dict[str, list[str]]:
    """Every stage's instructions with those of the stages that it begins with, by name, in the file's order."""
    found: dict[str, list[str]] = {}
    joined = re.sub(r"^#.*\n", "", text("Dockerfile"), flags=re.MULTILINE).replace("\\\n", " ")
    for line in joined.splitlines():
        begin = re.match(r"FROM (\S+) AS (\S+)", line)
        if begin:
            current = found.setdefault(begin[2], list(found.get(begin[1], ())))
        elif found and line.strip():
            current.append(line.strip())
    return found


def test_bases_are_pinned_by_digest() -> None:
    bases = re.findall(r"^ARG \w+_IMAGE=(\S+)$", text("Dockerfile"), re.MULTILINE)
    assert len(bases) == 3
    assert all(re.fullmatch(r"docker\.io/[a-z/]+:[\w.-]+@sha256:[0-9a-f]{64}", base) for base in bases)
    given = {f"${{{name}}}" for name in re.findall(r"^ARG (\w+_IMAGE)=", text("Dockerfile"), re.MULTILINE)}
    begun = re.findall(r"^FROM (\S+) AS (\S+)$", text("Dockerfile"), re.MULTILINE)
    assert {base for base, _ in begun} <= given | {name for _, name in begun}


def test_the_default_image_is_the_last_stage() -> None:
    assert list(stages())[-1] == "all-in-one"
    assert 'CMD ["serve", "--config", "/config/server.yaml"]' in stages()["all-in-one"]


@pytest.mark.parametrize("target", [*SMALL, "all-in-one"])
def test_every_image_is_locked_up_and_watched(target: str) -> None:
    lines = stages()[target]
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 10001:10001"
    assert any(line.startswith("HEALTHCHECK ") for line in lines)
    assert 'VOLUME ["/var/lib/inferflux"]' in lines
    assert any("org.inferflux.sbom=" in line for line in lines if line.startswith("LABEL "))
    assert any("sbom.py /usr/share/inferflux/sbom.cdx.json" in line for line in lines if line.startswith("RUN "))


def test_the_build_context_is_what_the_dockerfile_copies() -> None:
    kept = {line[1:].rstrip("/") for line in text(".dockerignore").splitlines() if line.startswith("!")}
    for line in text("Dockerfile").splitlines():
        copied = re.match(r"COPY (?!--from)(.+) \S+$", line)
        for source in copied[1].split() if copied else ():
            assert any(source.rstrip("/") == each or source.startswith(each + "/") for each in kept), source
            assert (ROOT / source).exists(), source


def test_the_llama_pin_is_the_project_s() -> None:
    (pin,) = set(re.findall(r"^ARG LLAMA_CPP_PYTHON=(\S+)$", text("Dockerfile"), re.MULTILINE))
    assert f'"llama-cpp-python=={pin}"' in text("pyproject.toml")
