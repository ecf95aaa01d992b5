"""Imports run one way between the rooms, and heavy libraries stay behind the backends."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.checkout import ROOMS, ROOT, sources, tree

MAY_IMPORT = {
    "config": {"config"},
    "broker": {"broker", "config"},
    "registry": {"registry", "broker", "config"},
    "api": {"api", "registry", "broker", "config"},
    "workers": {"workers", "registry", "broker", "config"},
    "cli": {"cli", "api", "workers", "registry", "broker", "config"},
}
HEAVY = {"torch", "llama_cpp", "numpy", "safetensors", "transformers", "tokenizers"}


def imported(module: ast.Module, path: Path) -> Iterator[tuple[str, int]]:
    """(absolute dotted name, line) of every import of a file at `path`; both parts of `from a import b`."""
    package = ["inferflux", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            for alias in node.names:
                yield ".".join([*above, *filter(None, [node.module]), alias.name]), node.lineno


def breaches(room: str, module: ast.Module, path: Path) -> list[str]:
    """What a file imports of InferFlux that its room may not."""
    found = []
    for name, line in imported(module, path):
        top, *rest = name.split(".")
        if top in ROOMS:
            found.append(f"{path.relative_to(ROOT)}:{line} imports {name} as a top-level package")
        elif top == "inferflux" and (not rest or rest[0] not in MAY_IMPORT[room]):
            found.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    assert sources(room)
    assert [breach for path in sources(room) for breach in breaches(room, tree(path), path)] == []


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("api", "from inferflux.workers import worker"),
        ("workers", "import inferflux.api.app"),
        ("config", "from inferflux.broker.errors import Code"),
        ("broker", "from ..registry import tenants"),
        ("registry", "from .. import api"),
        ("registry", "import broker"),
        ("api", "def later():\n    from inferflux.cli.main import main"),
    ],
)
def test_a_breach_is_seen(room: str, statement: str) -> None:
    assert breaches(room, ast.parse(statement), ROOT / room / "sample.py")


def test_heavy_libraries_stay_inside_the_backends() -> None:
    outside = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for room in ROOMS
        for path in sources(room)
        if not path.is_relative_to(ROOT / "workers" / "backends")
        for name, line in imported(tree(path), path)
        if name.split(".")[0] in HEAVY
    ]
    assert outside == []


@pytest.mark.parametrize("module", ["inferflux.cli.main", "inferflux.api.app", "inferflux.api.__main__"])
def test_only_a_worker_loads_heavy_libraries(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
