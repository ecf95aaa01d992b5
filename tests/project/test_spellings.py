"""Subjects, streams, buckets and headers are spelled in broker/subjects.py alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from harness.checkout import ROOMS, ROOT, sources, tree

from inferflux.broker import subjects

STREAMS = (subjects.STREAM_PROMPTS, subjects.STREAM_TAPE, subjects.STREAM_LIMITS, subjects.STREAM_USAGE)
SPELLING = re.compile(
    rf"^{subjects.ROOT}\.(infer|bell|tape|reply|cancel|fair|limit|budget|usage)\b"
    rf"|^(?:{'|'.join(STREAMS)})$"
    r"|\bNats-[A-Z]|\bInferflux-[A-Z]|_INBOX_|\$(?:JS|KV|O|SYS)\."
)


def literals(module: ast.Module) -> Iterator[ast.Constant]:
    """Every string of a file, parts of f-strings included, but no docstring or bare string statement."""
    prose = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node


def bucket_literals(module: ast.Module) -> Iterator[ast.Constant]:
    """Names of buckets given as a string to a `bucket(...)` call."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "bucket":
            yield from (arg for arg in node.args if isinstance(arg, ast.Constant))


def foreign(module: ast.Module) -> list[ast.Constant]:
    return [node for node in literals(module) if SPELLING.search(str(node.value))] + list(bucket_literals(module))


def test_only_subjects_spells_them() -> None:
    own = ROOT / "broker" / "subjects.py"
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} spells {node.value!r}"
        for room in ROOMS
        for path in sources(room)
        if path != own
        for node in foreign(tree(path))
    ]
    assert found == []


@pytest.mark.parametrize(
    "statement",
    [
        "subject = f'inferflux.infer.{model}'",
        "headers['Nats-Msg-Id'] = request",
        "stream = 'PROMPTS'",
        "await broker.bucket('workers')",
        "subject = '$JS.API.INFO'",
    ],
)
def test_a_spelling_is_seen(statement: str) -> None:
    assert foreign(ast.parse(statement))
