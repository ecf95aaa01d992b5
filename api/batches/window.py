"""The window: how much of a batch is in flight at a time, in lines and in bytes."""

from __future__ import annotations

import asyncio

MAX_BYTES = 8 * 1024 * 1024


class Window:
    """One line is let in whatever its size."""

    def __init__(self, max_lines: int, max_bytes: int = MAX_BYTES) -> None:
        self.num_lines = 0
        self._num_bytes = 0
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._changed = asyncio.Event()

    async def enter(self, num_bytes: int) -> None:
        """Wait for room, and take it."""
        while self.num_lines and (self.num_lines >= self._max_lines or self._num_bytes + num_bytes > self._max_bytes):
            self._changed.clear()
            await self._changed.wait()
        self.num_lines += 1
        self._num_bytes += num_bytes

    def leave(self, num_bytes: int) -> None:
        self.num_lines -= 1
        self._num_bytes -= num_bytes
        self._changed.set()
