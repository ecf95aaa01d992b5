"""The scripts say what is missing, and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness.checkout import ROOT

SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_bash(script: Path) -> None:
    assert script.stat().st_mode & 0o111 == 0o111
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def tools(folder: Path, *names: str) -> Path:
    """A PATH of nothing but these programs."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name) or name)
    return folder


def test_setup_names_the_python_it_needs(tmp_path: Path) -> None:
    checkout = tmp_path / "a checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    path = tools(tmp_path / "bin", "bash", "dirname", "cat", "cksum")
    done = subprocess.run(
        [checkout / "scripts" / "setup.sh"], env={"PATH": str(path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Python 3.11 or newer with the venv module was not found" in done.stderr
    assert "python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def test_setup_does_not_wait_for_a_run_that_died(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    died = subprocess.Popen(["true"])
    died.wait()
    lock = checkout / ".cache" / "setup.pid"
    lock.parent.mkdir()
    lock.symlink_to(str(died.pid))
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" != -m ] || exit 1\n[ "$2" != "${2#*print}" ] || exit 0\necho "$0"\n')
    python.chmod(0o755)
    environ = os.environ | {"PYTHON": str(python), "INFERFLUX_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [checkout / "scripts" / "setup.sh"], env=environ, capture_output=True, text=True, check=False, timeout=120
    )
    assert "creating .venv" in done.stderr
    assert "pip failed" in done.stderr
    assert not lock.is_symlink()


def test_a_missing_compiler_is_named_with_its_package(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    command = [sys.executable, ROOT / "scripts" / "build_llama.py", "--cache", tmp_path / "cache", "--model", model]
    done = subprocess.run(
        command, env={"PATH": str(tools(tmp_path / "bin"))}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no C++ compiler was found" in done.stderr
    assert "build-essential" in done.stderr


def test_without_a_model_no_build_is_trusted(tmp_path: Path) -> None:
    model = tmp_path / "missing.gguf"
    command = [sys.executable, ROOT / "scripts" / "build_llama.py", "--cache", tmp_path / "cache", "--model", model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"no model at {model}" in done.stderr


def test_setup_from_inside_an_environment_starts_from_what_made_it() -> None:
    script = (ROOT / "scripts" / "setup.sh").read_text()
    find = script[script.index("find_python() {") : script.index("# What the environment depends on")]
    done = subprocess.run(
        ["bash", "-c", f"{find}\nfind_python"],
        env={"PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = Path(done.stdout.strip())
    assert not found.is_relative_to(sys.prefix) or sys.prefix == sys.base_prefix
