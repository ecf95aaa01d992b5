"""What ties a serving process to the supervisor that started it: its name, and a pipe that ends with the parent."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping

SUPERVISED = "INFERFLUX_SUPERVISED"


def supervised_name(environ: Mapping[str, str]) -> str | None:
    """The name that the supervisor gave this process (`worker-2`), or None for a process of its own."""
    return environ.get(SUPERVISED) or None


async def parent_gone() -> None:
    """Return when the supervisor is gone, however it died: the other end of stdin is closed then.

    Without a supervisor it never returns.
    """
    if supervised_name(os.environ) is None:
        await asyncio.Event().wait()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while await reader.read(1024):
            pass
    finally:
        transport.close()
