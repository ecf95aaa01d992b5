"""A NATS message as it came, and headers to and from the wire."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Packet(msgspec.Struct, gc=False):
    """A message as it came: `raw_headers` are unparsed, empty when there are none."""

    subject: str
    reply: str
    data: bytes
    raw_headers: bytes

    @property
    def status(self) -> int | None:
        """The status that the server put in place of a message, such as 404 or 503."""
        line = self.raw_headers[8:12]
        return int(line) if line[:1] == b" " and line[1:].isdigit() else None

    def header(self, name: str) -> str | None:
        """One header, without parsing the others."""
        start = self.raw_headers.find(f"\r\n{name}:".encode())
        if start < 0:
            return None
        start += len(name) + 3
        return self.raw_headers[start : self.raw_headers.index(b"\r\n", start)].decode("utf-8", "replace").strip()

    @property
    def headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for line in self.raw_headers.split(b"\r\n")[1:]:
            name, colon, value = line.decode("utf-8", "replace").partition(":")
            if colon:
                headers[name] = value.strip()
        return headers

    @property
    def description(self) -> str:
        """The words that follow a status."""
        return self.raw_headers.split(b"\r\n", 1)[0][13:].decode("utf-8", "replace")


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Raises ValueError for a name or value that would break the protocol."""
    lines = ["NATS/1.0"]
    for name, value in headers.items():
        if not name or any(char in name for char in ":\r\n ") or "\r" in value or "\n" in value:
            raise ValueError(f"{name!r} is no valid NATS header")
        lines.append(f"{name}: {value}")
    return "\r\n".join((*lines, "", "")).encode()
