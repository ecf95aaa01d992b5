"""Batches whose replica is gone, stalled, or cut off: every line once, whoever writes."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from harness.batches import BatchClient, jsonl, line
from harness.scripted_worker import Turn, hello

NUM_LINES = 60


@pytest.fixture
def settings(apis: Any) -> Any:
    """Leases that run out soon, and few lines at a time."""
    batches = msgspec.structs.replace(apis.settings.batches, lease_s=1.0, max_in_flight=8)
    return msgspec.structs.replace(apis.settings, batches=batches)


def slow(gate: asyncio.Semaphore) -> Any:
    async def script(turn: Turn) -> None:
        await gate.acquire()
        await hello(turn)

    return script


async def halfway(client: BatchClient, gate: asyncio.Semaphore) -> Any:
    """A batch with a third of its lines answered and others in flight."""
    batch = await client.submit(jsonl(line(number) for number in range(NUM_LINES)))
    for _ in range(NUM_LINES // 3):
        gate.release()
    async with asyncio.timeout(30):
        while (await client.get(batch["id"]))["request_counts"]["completed"] < NUM_LINES // 3:
            await asyncio.sleep(0.02)
    return batch


async def assert_exact(client: BatchClient, ident: str) -> None:
    batch = await client.until(ident, "completed")
    assert batch["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
    lines = await client.lines(batch["output_file_id"])
    assert sorted(each["custom_id"] for each in lines) == sorted(f"line-{number}" for number in range(NUM_LINES))
    assert batch["error_file_id"] is None


def kill(api: Any) -> None:
    """Nothing of this replica's batches runs any more; it says goodbye to nobody."""
    keeper = api.parts.office.keeper
    for task in (*keeper._loops, *keeper._tasks):
        task.cancel()


async def test_another_replica_goes_on(apis: Any, settings: Any) -> None:
    first = await apis.start(settings)
    gate = asyncio.Semaphore(0)
    first.worker.script = slow(gate)
    batch = await halfway(BatchClient(first), gate)
    second = await apis.start(settings, beside=first)
    kill(first)
    for _ in range(NUM_LINES):
        gate.release()
    await assert_exact(BatchClient(second), batch["id"])
    # What was in flight was joined, and not asked again.
    assert len(first.worker.turns) == NUM_LINES
    assert second.parts.metrics.api.batch_takeovers._value.get() == 1


async def test_a_replica_that_shuts_down_hands_over_at_once(apis: Any, settings: Any) -> None:
    patient = msgspec.structs.replace(settings, batches=msgspec.structs.replace(settings.batches, lease_s=100.0))
    first = await apis.start(patient)
    gate = asyncio.Semaphore(0)
    first.worker.script = slow(gate)
    batch = await halfway(BatchClient(first), gate)
    second = await apis.start(patient, beside=first)
    await first.parts.office.close()
    for _ in range(NUM_LINES):
        gate.release()
    await assert_exact(BatchClient(second), batch["id"])
    assert len(first.worker.turns) == NUM_LINES


async def test_two_owners_at_once_write_each_line_once(apis: Any, settings: Any) -> None:
    """The first is so slow with its lease that the second takes over while it still works."""
    first = await apis.start(settings)
    gate = asyncio.Semaphore(0)
    first.worker.script = slow(gate)
    batch = await halfway(BatchClient(first), gate)
    (runner,) = first.parts.office.keeper._runners.values()
    stalled = asyncio.Event()

    async def stall(change: Any) -> Any:
        await stalled.wait()

    runner._held.change = stall
    second = await apis.start(settings, beside=first)
    async with asyncio.timeout(30):
        while not second.parts.office.keeper._runners:
            await asyncio.sleep(0.02)
    for _ in range(2 * NUM_LINES):
        gate.release()
    await assert_exact(BatchClient(second), batch["id"])
    stalled.set()


async def test_an_outage_of_the_broker_costs_no_line(apis: Any, settings: Any) -> None:
    api = await apis.start(settings)
    gate = asyncio.Semaphore(0)
    api.worker.script = slow(gate)
    client = BatchClient(api)
    batch = await halfway(client, gate)
    api.hub.online = False
    await asyncio.sleep(1.5)
    api.hub.online = True
    for _ in range(NUM_LINES):
        gate.release()
    await assert_exact(client, batch["id"])


async def test_a_lost_tape_is_asked_again(apis: Any, settings: Any) -> None:
    """As when the only NATS server was killed: what was generated is gone, and so are some prompts."""
    api = await apis.start(settings)
    gate = asyncio.Semaphore(0)
    lost: list[Turn] = []

    async def script(turn: Turn) -> None:
        await turn.say("Hel")
        await gate.acquire()
        if turn not in lost:
            await turn.end(text="lo", num_tokens=1, finish_reason="stop")

    api.worker.script = script
    client = BatchClient(api)
    batch = await client.submit(jsonl(line(number) for number in range(NUM_LINES)))
    async with asyncio.timeout(30):
        while len(api.worker.turns) < 8 or not all(turn.attempt for turn in api.worker.turns):
            await asyncio.sleep(0.01)
    lost += api.worker.turns[:4]
    for turn in lost:
        api.hub.tape.purge(turn.key)
        api.hub.prompts.drop(turn.delivery.seq)
    for _ in range(2 * NUM_LINES):
        gate.release()
    await assert_exact(client, batch["id"])
