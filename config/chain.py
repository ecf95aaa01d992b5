"""The audit log's chain: every line carries the hash of the line before it, so that no line can be changed, removed or
moved without a trace. Each process writes a chain of its own; several may share a file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

GENESIS = "0" * 64
"""What the first line of a chain names as the hash before it."""

_HASH = re.compile(rb',"hash":"([0-9a-f]{64})"\}$')

_encode = msgspec.json.Encoder().encode


class Link(msgspec.Struct, frozen=True):
    """Where a line stands: the chain's name, the line's number in it from 1, and the hash of the line before."""

    chain: str
    seq: int
    prev: str


class Head(msgspec.Struct, frozen=True):
    """The last line of a chain, as of some time (Unix seconds): what is kept elsewhere to prove a cut."""

    chain: str
    seq: int
    hash: str
    at: float = 0.0


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong with a log. `line` counts from 1 within `file`; 0 where no one line is at fault."""

    file: str
    line: int
    problem: str


class Chain:
    """A chain that grows. The head is the last line that was linked."""

    def __init__(self, name: str) -> None:
        self.head = Head(name, 0, GENESIS)

    def link(self, fields: Mapping[str, object]) -> bytes:
        """The next line of the chain, with its line feed."""
        head = self.head
        body = _encode({**fields, "chain": head.chain, "seq": head.seq + 1, "prev": head.hash})
        digest = hashlib.sha256(body).hexdigest()
        self.head = Head(head.chain, head.seq + 1, digest)
        return body[:-1] + b',"hash":"%s"}\n' % digest.encode()


class Verifier:
    """Reads log files in the order in which they were written, and tells what is wrong with them.

    `partial` says that older files may be missing: a chain may then begin anywhere.
    """

    def __init__(self, *, partial: bool = False) -> None:
        self.num_lines = 0
        self._partial = partial
        self._heads: dict[str, Head] = {}

    @property
    def num_chains(self) -> int:
        return len(self._heads)

    def read(self, file: str, lines: Iterable[bytes], anchors: Sequence[Head] = ()) -> Iterator[Finding]:
        """Findings of one file. `anchors` are compared as their lines are passed."""
        wanted = {(anchor.chain, anchor.seq): anchor.hash for anchor in anchors}
        for number, raw in enumerate(lines, 1):
            self.num_lines += 1
            problem = self._line(raw, wanted)
            if problem is not None:
                yield Finding(file, number, problem)

    def close(self, anchors: Iterable[Head]) -> Iterator[Finding]:
        """What is missing at the end, by what was kept elsewhere."""
        for anchor in anchors:
            head = self._heads.get(anchor.chain)
            if head is None:
                if not self._partial:
                    yield Finding("", 0, f"the chain {anchor.chain} with its {anchor.seq} lines is not here")
            elif head.seq < anchor.seq:
                lines = f"ends with line {head.seq} and had {anchor.seq}"
                yield Finding("", 0, f"the chain {anchor.chain} {lines}: its tail was cut, or a newer file is missing")

    def _line(self, raw: bytes, wanted: Mapping[tuple[str, int], str]) -> str | None:
        body, digest = _split(raw)
        if body is None or digest is None:
            return "is no line of an audit log"
        try:
            link = msgspec.json.decode(body, type=Link)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "is no line of an audit log"
        if hashlib.sha256(body).hexdigest() != digest:
            # What was changed proves nothing about its neighbours: the chain goes on from what the line says it is.
            self._heads[link.chain] = Head(link.chain, link.seq, digest)
            return "was changed: its hash is another"
        before = self._heads.get(link.chain)
        self._heads[link.chain] = Head(link.chain, link.seq, digest)
        anchored = wanted.get((link.chain, link.seq))
        if anchored is not None and anchored != digest:
            return "is not the line that was anchored under this number: the log was written anew"
        return self._out_of_order(link, before)

    def _out_of_order(self, link: Link, before: Head | None) -> str | None:
        if before is None:
            if self._partial or link.seq == 1:
                return None
            return f"begins the chain {link.chain} with line {link.seq}: what came before is missing"
        if link.seq != before.seq + 1:
            return f"is line {link.seq} of the chain {link.chain} and follows line {before.seq}: removed or reordered"
        if link.prev != before.hash:
            return f"does not continue line {before.seq} of the chain {link.chain}: that one was replaced"
        return None


def _split(raw: bytes) -> tuple[bytes | None, str | None]:
    match = _HASH.search(raw.removesuffix(b"\n"))
    if match is None:
        return None, None
    return raw[: match.start()] + b"}", match[1].decode()
