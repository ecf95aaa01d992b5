"""The chunks of an object store in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .broker import ChunkStore
from .errors import RevisionConflict

if TYPE_CHECKING:
    from .memory import MemoryBroker


class _Chunk(NamedTuple):
    data: bytes
    stored_s: float


class StoredChunks:
    """What one store of a hub holds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.chunks: dict[str, dict[int, _Chunk]] = {}
        self.abouts: dict[str, bytes] = {}


class MemoryChunks(ChunkStore):
    """One broker's view of a store: while its hub is offline every call raises BrokerUnavailable."""

    def __init__(self, broker: MemoryBroker, store: str) -> None:
        self._broker = broker
        self._store = store

    @property
    def name(self) -> str:
        return self._store

    async def put(self, name: str, number: int, data: bytes, *, fresh: bool = False) -> None:
        stored = self._stored
        chunks = stored.chunks.setdefault(name, {})
        if fresh and number in chunks:
            raise RevisionConflict(f"chunk {number} of {name} is there already")
        chunks[number] = _Chunk(data, stored.clock())

    async def get(self, name: str, number: int) -> bytes | None:
        chunk = self._stored.chunks.get(name, {}).get(number)
        return None if chunk is None else chunk.data

    async def purge(self, name: str) -> None:
        self._stored.chunks.pop(name, None)

    async def names(self) -> dict[str, int]:
        return {name: len(chunks) for name, chunks in self._stored.chunks.items()}

    async def stored_s(self, name: str, number: int) -> float | None:
        chunk = self._stored.chunks.get(name, {}).get(number)
        return None if chunk is None else chunk.stored_s

    async def describe(self, name: str, about: bytes) -> None:
        if name in self._stored.abouts:
            raise RevisionConflict(f"{name} is there already")
        self._stored.abouts[name] = about

    async def about(self, name: str) -> bytes | None:
        return self._stored.abouts.get(name)

    async def described(self) -> list[str]:
        return list(self._stored.abouts)

    async def forget(self, name: str) -> bool:
        return self._stored.abouts.pop(name, None) is not None

    @property
    def _stored(self) -> StoredChunks:
        return self._broker.hub.objects[self._store]
