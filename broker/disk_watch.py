"""Whether nats-server has given up storing because its disk was full, and whether there is room again."""

from __future__ import annotations

import shutil
from pathlib import Path

_GIVEN_UP = b"critical write error"
ROOM_BYTES = 16 * 1024 * 1024


class DiskWatch:
    """Reads the server's log as it grows. nats-server 2.15 refuses every write to a stream after one that failed for
    want of space, also when there is space again, and says so in no other way; a restart cures it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read_bytes = 0
        self._given_up = False

    def begin(self) -> None:
        """A new server: what the log says so far is of an earlier one."""
        self._read_bytes = self._size()
        self._given_up = False

    def can_be_cured(self) -> bool:
        """Whether a restart would make the server store again."""
        self._given_up = self._given_up or _GIVEN_UP in self._news().lower()
        return self._given_up and shutil.disk_usage(self._log.parent).free >= ROOM_BYTES

    def _news(self) -> bytes:
        size = self._size()
        if size == self._read_bytes:
            return b""
        start = self._read_bytes if size > self._read_bytes else 0  # it was rotated
        self._read_bytes = size
        try:
            with self._log.open("rb") as log:
                log.seek(start)
                return log.read(size - start)
        except OSError:
            return b""

    def _size(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0
