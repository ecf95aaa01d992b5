"""The splitter: lines out of a file that comes in pieces, none of them held longer than it may be long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line that is not blank, without its end; `number` counts all lines from 1. `body` is None for one too long."""

    number: int
    body: bytes | None


class LineSplitter:
    """Lines end with LF or CR LF; the last may do without. A byte order mark before the first is no part of it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._number = 0
        self._too_long = False

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """The lines that this chunk completes."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._keep(chunk[start:end])
            start = end + 1
            yield from self._take()
        self._keep(chunk[start:])

    def close(self) -> Iterator[Line]:
        """The last line, where it has no end of its own."""
        if self._rest or self._too_long:
            yield from self._take()

    def _keep(self, piece: bytes) -> None:
        # A carriage return and a byte order mark are no part of what is bounded.
        if len(self._rest) + len(piece) > self._max_bytes + len(BOM) + 1:
            self._too_long = True
            self._rest.clear()
        elif not self._too_long:
            self._rest += piece

    def _take(self) -> Iterator[Line]:
        self._number += 1
        body = bytes(self._rest)
        if self._number == 1:
            body = body.removeprefix(BOM)
        body = body.removesuffix(b"\r")
        too_long = self._too_long or len(body) > self._max_bytes
        self._rest.clear()
        self._too_long = False
        if too_long or body.strip():
            yield Line(self._number, None if too_long else body)
