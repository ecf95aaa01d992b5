"""Server-sent events as a client reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec


class Event(msgspec.Struct, frozen=True):
    """One server-sent event."""

    data: str
    name: str = "message"
    id: str | None = None


def parse_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Server-sent events (WHATWG HTML, section 9.2) out of a byte stream cut anywhere.

    Only CR LF and LF end a line: text may hold every other character that Unicode counts as a line break.
    """
    name, ident, data = "message", None, list[str]()
    for line in _lines(chunks):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Event("\n".join(data), name, ident)
            name, data = "message", []
        elif field == "data":
            data.append(value)
        elif field == "event":
            name = value
        elif field == "id":
            ident = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
