"""A KV bucket in memory, with expiry by the hub's clock and watchers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable

import msgspec

from . import subjects
from .broker import Bucket, Entry
from .errors import RevisionConflict
from .topology import Retention


class _Stored(msgspec.Struct, frozen=True):
    entry: Entry
    stored_s: float
    expires_s: float | None


class MemoryBucket(Bucket):
    """One bucket, shared by every broker of a hub."""

    def __init__(self, name: str, clock: Callable[[], float], retention: Retention | None = None) -> None:
        self._name = name
        self._clock = clock
        self._retention = retention
        self._stored: dict[str, _Stored] = {}
        self._last_revision = 0
        self._watches: set[MemoryWatch] = set()

    async def get(self, key: str) -> Entry | None:
        return self._get(key)

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        return self._put(key, value, ttl_s)

    async def create(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        if self._get(key) is not None:
            raise RevisionConflict(f"{self._name}: {key} has changed")
        return self._put(key, value, ttl_s)

    async def update(self, key: str, value: bytes, revision: int, *, ttl_s: float | None = None) -> int:
        self._check(key, revision)
        return self._put(key, value, ttl_s)

    async def delete(self, key: str, revision: int | None = None) -> None:
        if revision is not None:
            self._check(key, revision)
        if self._get(key) is not None:
            self._remove(key)

    async def entries(self) -> list[Entry]:
        self.expire()
        return [stored.entry for stored in self._stored.values()]

    async def keys(self) -> list[str]:
        return [entry.key for entry in await self.entries()]

    def watch(self) -> AsyncIterator[Entry | None]:
        return MemoryWatch(self, self._watches)

    def current(self) -> list[Entry]:
        """What a new watcher sees first."""
        self.expire()
        return [stored.entry for stored in self._stored.values()]

    def expire(self) -> None:
        """Remove what has expired, and tell the watchers."""
        now_s = self._clock()
        for key, stored in tuple(self._stored.items()):
            if stored.expires_s is not None and stored.expires_s <= now_s:
                self._remove(key)
        self._retain(now_s)

    def _retain(self, now_s: float) -> None:
        """Give up the oldest entries beyond the bounds; as on a server, watchers are not told."""
        bounds = self._retention
        if bounds is None:
            return
        oldest = sorted(self._stored.values(), key=lambda stored: stored.entry.revision)
        num_bytes = sum(len(stored.entry.value or b"") for stored in oldest)
        for num_given_up, stored in enumerate(oldest):
            late = stored.stored_s + bounds.max_age_s <= now_s
            if not late and len(oldest) - num_given_up <= bounds.max_entries and num_bytes <= bounds.max_bytes:
                return
            num_bytes -= len(stored.entry.value or b"")
            del self._stored[stored.entry.key]

    def _get(self, key: str) -> Entry | None:
        self.expire()
        stored = self._stored.get(key)
        return None if stored is None else stored.entry

    def _put(self, key: str, value: bytes, ttl_s: float | None) -> int:
        if ttl_s is not None and self._name not in subjects.EXPIRING_BUCKETS:
            raise ValueError(f"entries of the bucket {self._name!r} do not expire")
        self._last_revision += 1
        expires_s = None
        if ttl_s is not None:
            whole_s = max(1, math.ceil(ttl_s))
            expires_s = self._clock() + whole_s
            asyncio.get_running_loop().call_later(whole_s + 0.01, self.expire)
        entry = Entry(key, value, self._last_revision)
        self._stored[key] = _Stored(entry, self._clock(), expires_s)
        self._retain(self._clock())
        self._tell(entry)
        return entry.revision

    def _remove(self, key: str) -> None:
        self._last_revision += 1
        del self._stored[key]
        self._tell(Entry(key, None, self._last_revision))

    def _check(self, key: str, revision: int) -> None:
        entry = self._get(key)
        if entry is None or entry.revision != revision:
            raise RevisionConflict(f"{self._name}: {key} has changed")

    def _tell(self, entry: Entry) -> None:
        for watch in self._watches:
            watch.tell(entry)


class MemoryWatch(AsyncIterator[Entry | None]):
    """A watcher's queue; filled from its first use until it is closed."""

    def __init__(self, bucket: MemoryBucket, watches: set[MemoryWatch]) -> None:
        self._bucket = bucket
        self._watches = watches
        self._queue: asyncio.Queue[Entry | None] = asyncio.Queue()
        self._started = False
        self._closed = False

    def tell(self, entry: Entry) -> None:
        self._queue.put_nowait(entry)

    async def __anext__(self) -> Entry | None:
        if self._closed:
            raise StopAsyncIteration
        if not self._started:
            self._started = True
            for entry in (*self._bucket.current(), None):
                self._queue.put_nowait(entry)
            self._watches.add(self)
        return await self._queue.get()

    async def aclose(self) -> None:
        self._closed = True
        self._watches.discard(self)
