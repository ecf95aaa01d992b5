"""The journal: two that write at once, and each line once."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from inferflux.api.batches.journal import Journal
from inferflux.api.batches.tally import Tally
from inferflux.broker.errors import ObjectDamaged
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.objects import CHUNK_BYTES
from inferflux.broker.subjects import OBJECTS_FILES, journal_name
from inferflux.broker.wire.batches import BatchEntry, LineCounts

NAME = journal_name("b1")


def entry(line: int, *, failed: bool = False, size: int = 10) -> BatchEntry:
    return BatchEntry(line=line, failed=failed, record=msgspec.Raw(msgspec.json.encode("x" * size)))


class Writer:
    """One replica with the journal in its hands."""

    def __init__(self, hub: MemoryHub) -> None:
        self.tally = Tally(1000)
        self.journal = Journal(MemoryBroker(hub).chunks(OBJECTS_FILES), NAME, self.tally.add)

    async def write(self, *entries: BatchEntry) -> None:
        await self.journal.append(entries, lambda each: not self.tally.has(each.line))


async def lines(writer: Writer) -> list[int]:
    return [each.line async for each in writer.journal.entries(writer.journal.num_parts)]


async def test_of_two_writers_each_line_is_written_once() -> None:
    hub = MemoryHub()
    first, second = Writer(hub), Writer(hub)
    await first.write(entry(1), entry(2))
    await asyncio.gather(
        first.write(entry(3), entry(4)), second.write(entry(2), entry(3), entry(5, failed=True)), first.write(entry(6))
    )
    await first.journal.replay()
    await second.journal.replay()
    assert sorted(await lines(first)) == [1, 2, 3, 4, 5, 6]
    assert first.tally.counts == second.tally.counts == LineCounts(total=1000, completed=5, failed=1)


async def test_large_answers_get_parts_of_their_own() -> None:
    writer = Writer(MemoryHub())
    await writer.write(*(entry(line, size=CHUNK_BYTES // 2) for line in range(1, 6)), entry(6, size=3 * CHUNK_BYTES))
    assert writer.journal.num_parts == 6
    assert await lines(writer) == [1, 2, 3, 4, 5, 6]


async def test_a_missing_part_is_no_shorter_result() -> None:
    writer = Writer(MemoryHub())
    await writer.write(entry(1))
    with pytest.raises(ObjectDamaged):
        [each async for each in writer.journal.entries(2)]
    await writer.journal.purge()
    with pytest.raises(ObjectDamaged):
        await lines(writer)
