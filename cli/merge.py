"""One log out of the output of many processes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Literal, TextIO

from inferflux.config.logs import process_colour

MAX_LINE = 64 * 1024

_OWN_TEXT = re.compile(r"(\x1b\[2m)?\d\d:\d\d:\d\d\.\d{3}\b")


class LineMerger:
    """Passes on children's log lines whole, and marks what is none (a native library's words) with its process."""

    def __init__(self, stream: TextIO, format: Literal["text", "json"], *, coloured: bool) -> None:
        self._stream = stream
        self._format = format
        self._coloured = coloured

    async def drink(self, process: str, source: asyncio.StreamReader) -> None:
        """Read until the process closes its output; lines are cut at 64 KiB."""
        rest = b""
        while chunk := await source.read(MAX_LINE):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) >= MAX_LINE:
                lines, rest = [*lines, rest], b""
            if lines:
                self._write(process, lines)
        if rest:
            self._write(process, [rest])

    def _write(self, process: str, lines: list[bytes]) -> None:
        merged = (self.merge(process, line.decode("utf-8", "replace").rstrip("\r")) for line in lines)
        self._stream.write("".join(line + "\n" for line in merged))
        self._stream.flush()

    def merge(self, process: str, line: str) -> str:
        """The line as the merged log has it."""
        if self._format == "json":
            if line.startswith('{"ts"'):
                return line
            return json.dumps(
                {
                    "ts": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "level": "info",
                    "process": process,
                    "logger": "output",
                    "event": "output",
                    "fields": {"text": line},
                }
            )
        if _OWN_TEXT.match(line) or line.startswith("    "):
            return line
        name = f"{process:<8}"
        if self._coloured:
            name = f"\x1b[{process_colour(process)}m{name}\x1b[0m"
        return f"{time.strftime('%H:%M:%S')}     {name} {line}"
