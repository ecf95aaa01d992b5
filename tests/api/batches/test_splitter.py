"""Lines out of pieces, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferflux.api.batches.splitter import BOM, Line, LineSplitter


def split(content: bytes, size: int, max_bytes: int = 100) -> list[Line]:
    splitter = LineSplitter(max_bytes)
    lines = [line for start in range(0, len(content), size) for line in splitter.feed(content[start : start + size])]
    return lines + list(splitter.close())


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n\n", []),
        (b"a\nb", [Line(1, b"a"), Line(2, b"b")]),
        (b"a\r\n\r\nb\r\n", [Line(1, b"a"), Line(3, b"b")]),
        (BOM + b"a\n", [Line(1, b"a")]),
        (b"a\n" + BOM + b"b", [Line(1, b"a"), Line(2, BOM + b"b")]),
        (b"x" * 100 + b"\r\n", [Line(1, b"x" * 100)]),
        (BOM + b"x" * 100 + b"\r\n", [Line(1, b"x" * 100)]),
        (b"x" * 101 + b"\nb", [Line(1, None), Line(2, b"b")]),
        (b"a\n" + b"x" * 5000, [Line(1, b"a"), Line(2, None)]),
    ],
)
def test_lines(content: bytes, expected: list[Line], size: int) -> None:
    assert split(content, size) == expected


@given(content=st.binary(max_size=300), size=st.integers(1, 50))
def test_where_it_is_cut_makes_no_difference(content: bytes, size: int) -> None:
    assert split(content, size, 20) == split(content, 1000, 20)


def test_a_line_of_50_mb_is_not_held() -> None:
    splitter = LineSplitter(1000)
    for _ in range(50):
        assert list(splitter.feed(b"x" * 1_000_000)) == []
        assert len(splitter._rest) <= 1010
    assert list(splitter.close()) == [Line(1, None)]
