"""What pyproject.toml packs is what lies on the disk: a missing package still imports in an editable install."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from harness.checkout import ROOMS, ROOT, pyproject, sources, text


def folders() -> dict[str, str]:
    """Every folder of Python files in the rooms, by package name."""
    found = {path.parent.relative_to(ROOT) for room in ROOMS for path in sources(room)}
    return {".".join(["inferflux", *folder.parts]): folder.as_posix() for folder in found}


def test_every_folder_is_a_listed_package() -> None:
    setuptools = pyproject()["tool"]["setuptools"]
    assert setuptools["package-dir"] == folders()
    assert sorted(setuptools["packages"]) == sorted(folders())


def test_every_package_is_typed_and_says_what_it_owns() -> None:
    for folder in folders().values():
        assert (ROOT / folder / "py.typed").is_file(), folder
        assert text(f"{folder}/__init__.py").lstrip().startswith('"""'), folder


def test_the_wheel_holds_every_module_and_setting_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if re.search("connection|name resolution|No matching distribution", done.stderr):
        pytest.skip("the build backend cannot be fetched here")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("inferflux/")}
    expected = {
        f"inferflux/{path.relative_to(source).as_posix()}"
        for room in ROOMS
        for path in (source / room).rglob("*")
        if path.name == "py.typed" or path.suffix in (".py", ".yaml", ".cpp", ".h", ".html", ".css", ".js")
    }
    assert packed == expected


def test_the_llama_build_is_the_pinned_one() -> None:
    (pin,) = (item for item in pyproject()["project"]["optional-dependencies"]["llamacpp"] if "llama" in item)
    version = re.search(r'^VERSION = "(.*)"', text("scripts/build_llama.py"), re.MULTILINE)
    assert version
    assert pin == f"llama-cpp-python=={version[1]}"
