"""Offload: prefixes that were pushed out of memory, on a disk and back, without ever keeping a step waiting."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from inferflux.config.logs import get_logger

from .prefix_directory import PrefixDirectory
from .prefix_file import file_bytes
from .prefix_index import PrefixIndex, Saved

log = get_logger("engine.offload")

MAX_PENDING_BYTES = 256 << 20

Arrival = Callable[[bytes | None, float], None]
"""Called on the disk's thread with the state, or None when it cannot be had, and the seconds that reading took: 0 when
it was still in memory."""


class OffloadStats(msgspec.Struct, frozen=True, kw_only=True):
    """Totals since the start; `active` is False once a disk has failed. A miss is a prefix that no file could give,
    a drop one that was not written because the disk was behind."""

    active: bool = False
    num_bytes: int = 0
    num_reads: int = 0
    read_bytes: int = 0
    num_writes: int = 0
    write_bytes: int = 0
    num_misses: int = 0
    num_drops: int = 0


class Offload:
    """At most `max_bytes` of saved prefixes under `root`, on a thread of its own. No call raises or waits for a disk.

    The first failure of the file system ends it: from then on nothing is found and nothing is stored.
    """

    def __init__(self, root: Path, max_bytes: int, fingerprint: str) -> None:
        self._root = root
        self._fingerprint = fingerprint
        self._index = PrefixIndex(max_bytes)
        self._changed = threading.Condition()
        self._reads: deque[tuple[Saved, Arrival]] = deque()
        self._writes: deque[tuple[Saved, bytes | None]] = deque()
        self._unwritten: dict[bytes, bytes] = {}
        self._num_pending_bytes = 0
        self._directory: PrefixDirectory | None = None
        self._active = False
        self._closing = False
        self._num_reads = self._read_bytes = self._num_writes = self._write_bytes = 0
        self._num_misses = self._num_drops = 0
        self._thread = threading.Thread(target=self._main, name="offload", daemon=True)

    def start(self) -> None:
        """Find what an earlier process left."""
        try:
            self._directory = directory = PrefixDirectory(self._root, self._fingerprint)
            directory.scan(self._index)
        except OSError as error:
            self._give_up(error)
            return
        self._active = True
        log.info(
            "offload starts",
            path=str(directory.path),
            prefixes=len(self._index),
            mib=self._index.num_bytes >> 20,
            max_mib=self._index.max_bytes >> 20,
        )
        self._thread.start()

    def wants(self, chain: Sequence[bytes]) -> bool:
        """Whether to save this prefix: it is not stored yet, and the disk keeps up."""
        with self._changed:
            if not self._active or chain[-1] in self._index:
                return False
            keeps_up = self._num_pending_bytes < MAX_PENDING_BYTES
            self._num_drops += not keeps_up
            return keeps_up

    def store(self, chain: tuple[bytes, ...], state: bytes) -> None:
        """Write it some time soon; it can be found from now on."""
        saved = Saved(chain, file_bytes(self._fingerprint, chain, state))
        with self._changed:
            if not self._active:
                return
            gone = self._index.add(saved)
            self._writes += [(each, None) for each in gone if each is not saved]
            if saved in gone:
                self._num_drops += 1
            else:
                self._writes.append((saved, state))
                self._unwritten[saved.key] = state
                self._num_pending_bytes += len(state)
            self._changed.notify_all()

    def find(self, chain: Sequence[bytes]) -> tuple[Saved, int] | None:
        """What holds the longest beginning of the chain, and how many of its pages."""
        with self._changed:
            return self._index.match(chain) if self._active else None

    def clear(self) -> None:
        """Forget and delete everything."""
        with self._changed:
            if self._active:
                self._writes += [(gone, None) for gone in self._index.clear()]
                self._changed.notify_all()

    def missed(self) -> None:
        """What was looked for was not there, or not worth reading."""
        self._num_misses += 1

    def fetch(self, saved: Saved, arrival: Arrival) -> None:
        """Read it; `arrival` is called once, whatever happens."""
        with self._changed:
            if self._active:
                self._reads.append((saved, arrival))
                self._changed.notify_all()
                return
        arrival(None, 0.0)

    def stats(self) -> OffloadStats:
        """A snapshot; any thread."""
        return OffloadStats(
            active=self._active,
            num_bytes=self._index.num_bytes,
            num_reads=self._num_reads,
            read_bytes=self._read_bytes,
            num_writes=self._num_writes,
            write_bytes=self._write_bytes,
            num_misses=self._num_misses,
            num_drops=self._num_drops,
        )

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written; False when it took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._active and (self._writes or self._unwritten)), timeout_s)

    def close(self, timeout_s: float) -> None:
        """Write what still waits, as far as time allows."""
        self.flush(timeout_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._directory is not None:
            self._directory.close()

    @property
    def _files(self) -> PrefixDirectory:
        assert self._directory is not None, "the thread runs once the directory is open"
        return self._directory

    def _main(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:
            self._give_up(error)

    def _turn(self) -> bool:
        """One read or one write; readers have waited already, so they go first. False when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._reads or self._writes)
            if self._reads:
                reading, writing = self._reads.popleft(), None
            elif self._writes and not self._closing:
                reading, writing = None, self._writes[0]
            else:
                return False
        if reading is not None:
            self._read(*reading)
        if writing is not None:
            self._write(*writing)
        return True

    def _read(self, saved: Saved, arrival: Arrival) -> None:
        took_s = 0.0
        with self._changed:
            state = self._unwritten.get(saved.key)
        try:
            if state is None:
                began = time.perf_counter()
                state = self._files.read(saved.key)
                took_s = time.perf_counter() - began
                self._num_reads += state is not None
                self._read_bytes += len(state or b"")
            if state is None:
                self._num_misses += 1
                self._drop(saved.key)
        finally:
            arrival(state, took_s)

    def _write(self, saved: Saved, state: bytes | None) -> None:
        if state is None:
            self._files.remove(saved.key)
        else:
            self._files.write(saved.chain, state)
            self._num_writes += 1
            self._write_bytes += len(state)
        with self._changed:
            self._writes.popleft()  # only now: whoever flushes waits for files that go, too
            if state is not None:
                self._num_pending_bytes -= len(state)
                # It may have been removed and stored again meanwhile.
                if self._unwritten.get(saved.key) is state:
                    del self._unwritten[saved.key]
            self._changed.notify_all()

    def _drop(self, key: bytes) -> None:
        with self._changed:
            if self._index.get(key) is not None:
                self._index.remove(key)

    def _give_up(self, error: Exception) -> None:
        unexpected = None if isinstance(error, OSError) else error
        log.error("offload is off: the disk failed", error=unexpected, path=str(self._root), reason=str(error))
        with self._changed:
            self._active = False
            readers, self._reads = list(self._reads), deque()
            self._writes.clear()
            self._unwritten.clear()
            self._num_pending_bytes = 0
            self._changed.notify_all()
        for _, arrival in readers:
            arrival(None, 0.0)
