"""Counters: additions that are exact over many processes, each message id once."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from harness.world import WAIT_S, World

from inferflux.broker import jetstream_api
from inferflux.broker.subjects import Counter, Series

_numbers = itertools.count()


def limit() -> Counter:
    return Counter(Series.LIMIT, ("tenant", f"a.b c/{next(_numbers)}", "123"))


async def test_two_hundred_at_once_give_two_hundred_values(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever has to ask a second time is told a later sum where more have counted since than the stream keeps.
    monkeypatch.setattr(jetstream_api, "TRY_S", WAIT_S)
    brokers = [await world.broker("api"), await world.broker("worker")]
    counter = limit()
    values = await asyncio.gather(*(brokers[each % 2].count(counter, 1) for each in range(200)))
    assert sorted(value for value in values if value is not None) == list(range(1, 201))
    assert await brokers[0].counted(counter) == 200


async def test_a_message_id_counts_once(world: World) -> None:
    worker = await world.broker("worker")
    counter = limit()
    assert await worker.count(counter, 5, msg_id=f"{counter.parts}.r") == 5
    assert await worker.count(counter, 5, msg_id=f"{counter.parts}.r") is None
    assert await worker.count(limit(), 5, msg_id=f"{counter.parts}.r") is None, "an id is one of the whole stream"
    assert await worker.counted(counter) == 5


async def test_numbers_may_be_large_and_negative(world: World) -> None:
    worker = await world.broker("worker")
    counter = limit()
    assert await worker.counted(counter) == 0
    assert await worker.count(counter, (7 << 192) + 1) == (7 << 192) + 1
    assert await worker.count(counter, -(8 << 192)) == 1 - (1 << 192)
    assert await worker.counted(counter) == 1 - (1 << 192)


async def test_counters_are_found_by_their_parts(world: World) -> None:
    worker, api = await world.broker("worker"), await world.broker("api")
    tenant = f"tenant {next(_numbers)}"
    days = [("k1", "org/m:1", "2026-01-01"), ("k1", "other", "2026-01-02"), ("k2", "org/m:1", "2026-01-02")]
    for number, parts in enumerate(days, start=1):
        await worker.count(Counter(Series.USAGE, (tenant, *parts)), number)
        await worker.count(Counter(Series.USAGE, (tenant, *parts)), number)
    await worker.count(Counter(Series.BUDGET, (tenant, "2026-01")), 7)
    found: dict[Counter, int] = {}
    async with asyncio.timeout(WAIT_S):
        while sum(found.values()) < 12:
            found = await api.counters(Series.USAGE, (tenant, None, None, None))
    await world.in_step()
    assert {counter.parts[1:]: value for counter, value in found.items()} == dict(zip(days, (2, 4, 6), strict=True))
    narrow = await api.counters(Series.USAGE, (tenant, None, "org/m:1", "2026-01-02"))
    assert [counter.parts[1] for counter in narrow] == ["k2"]
    assert await api.counters(Series.USAGE, ("nobody", None, None, None)) == {}
    assert list((await api.counters(Series.BUDGET, (tenant, None))).values()) == [7]
