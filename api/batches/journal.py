"""The journal: what a batch's lines have answered, in parts that are written once and in order.

A part is written by compare-and-set on its number, so whoever writes one has seen all before it: of two replicas that
both believe to own a batch, neither can add a line that the other has added.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from inferflux.broker.broker import ChunkStore
from inferflux.broker.errors import ObjectDamaged, RevisionConflict
from inferflux.broker.objects import CHUNK_BYTES
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.batches import BatchEntry

_decode_lines = msgspec.json.Decoder(BatchEntry).decode_lines


class Journal:
    """One batch's. `on_entry` hears of every entry once, whoever wrote it. Every call may raise BrokerError."""

    def __init__(self, chunks: ChunkStore, name: str, on_entry: Callable[[BatchEntry], None]) -> None:
        self.num_parts = 0
        self._chunks = chunks
        self._name = name
        self._on_entry = on_entry

    async def replay(self) -> None:
        """Take in what was written since the last look."""
        while (part := await self._chunks.get(self._name, self.num_parts)) is not None:
            self.num_parts += 1
            for entry in _decode_lines(part):
                self._on_entry(entry)

    async def append(self, entries: Sequence[BatchEntry], is_new: Callable[[BatchEntry], bool]) -> None:
        """Write what is still new when its turn comes."""
        waiting = list(entries)
        while waiting:
            part, rest = _part(waiting)
            try:
                await self._chunks.put(self._name, self.num_parts, b"\n".join(map(encode, part)), fresh=True)
            except RevisionConflict:
                await self.replay()
                waiting = [entry for entry in waiting if is_new(entry)]
                continue
            self.num_parts += 1
            for entry in part:
                self._on_entry(entry)
            waiting = rest

    async def entries(self, num_parts: int) -> AsyncIterator[BatchEntry]:
        """Everything that the first parts hold. Raises ObjectDamaged where one is missing."""
        for number in range(num_parts):
            part = await self._chunks.get(self._name, number)
            if part is None:
                raise ObjectDamaged(f"part {number} of {num_parts} of the journal is missing")
            for entry in _decode_lines(part):
                yield entry

    async def purge(self) -> None:
        await self._chunks.purge(self._name)


def _part(entries: list[BatchEntry]) -> tuple[list[BatchEntry], list[BatchEntry]]:
    """What fits into the next part, and the rest."""
    num_bytes = 0
    for number, entry in enumerate(entries):
        num_bytes += len(entry.record)
        if number and num_bytes > CHUNK_BYTES:
            return entries[:number], entries[number:]
    return entries, []
