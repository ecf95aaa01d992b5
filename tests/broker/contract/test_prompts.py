"""Prompts: stored once, delivered under a lease, in their lane's order."""

from __future__ import annotations

import asyncio
import secrets
import time

from harness.world import LIMITS, WAIT_S, WARM_UP, Inbox, World

from inferflux.broker.broker import Bell, LaneLimits
from inferflux.broker.subjects import Lane, ServiceClass


async def test_prompt_arrives_as_published(world: World, lane: Lane) -> None:
    api, worker = await world.broker("api"), await world.broker("worker")
    receipt = await api.publish_prompt(lane, b'{"x": 1}', msg_id=lane.model, headers={"Inferflux-Stamp": "1;a-b;c"})
    delivery = await world.pull(worker, lane)
    assert (delivery.lane, delivery.body, delivery.seq) == (lane, b'{"x": 1}', receipt.seq)
    assert delivery.headers["Inferflux-Stamp"] == "1;a-b;c"
    assert (delivery.num_delivered, delivery.num_pending) == (1, 0)


async def test_order_and_what_is_left(world: World, lane: Lane) -> None:
    api, worker = await world.broker("api"), await world.broker("worker")
    for number in range(3):
        await api.publish_prompt(lane, b"%d" % number, msg_id=f"{lane.model}{number}")
    await world.in_step()
    held = [await world.pull(worker, lane) for _ in range(3)]
    assert [each.body for each in held] == [b"0", b"1", b"2"]
    assert [each.num_pending for each in held] == [2, 1, 0]
    assert await worker.pull(lane, LIMITS) is None


async def test_longest_names_make_a_lane(world: World, lane: Lane) -> None:
    lane = Lane((lane.model[15:-1] * 200)[:200], ServiceClass.PRIORITY, "t" * 200)
    api, worker = await world.broker("api"), await world.broker("worker")
    await api.publish_prompt(lane, b"x", msg_id=lane.model)
    await (await world.pull(worker, lane)).ack()


async def test_empty_lane_answers_none(world: World, lane: Lane) -> None:
    worker = await world.broker("worker")
    # In memory or on a server, this is less than a call may take before it is given up.
    async with asyncio.timeout(WAIT_S / 2):
        assert await worker.pull(lane, LIMITS) is None


async def test_equal_message_ids_are_one_prompt(world: World, lane: Lane) -> None:
    api = await world.broker("api")
    first = await api.publish_prompt(lane, b"a", msg_id=lane.model)
    second = await api.publish_prompt(lane, b"b", msg_id=lane.model)
    assert not first.duplicate
    assert second.duplicate
    assert second.seq == first.seq
    assert (await api.backlog(lane.model)) == {lane: 1}


async def test_a_finished_prompt_is_still_a_duplicate(world: World, lane: Lane) -> None:
    api, worker = await world.broker("api"), await world.broker("worker")
    await api.publish_prompt(lane, b"a", msg_id=lane.model)
    await (await world.pull(worker, lane)).ack()
    assert (await api.publish_prompt(lane, b"a", msg_id=lane.model)).duplicate
    await world.until_empty(api, lane.model)


async def test_lease_that_runs_out_redelivers(world: World, lane: Lane) -> None:
    limits = LaneLimits(max_running=1, lease_s=0.5, idle_s=60)
    api, first, second = await world.broker("api"), await world.broker("worker"), await world.broker("worker")
    await api.publish_prompt(lane, b"x", msg_id=lane.model)
    started_s = world.clock()
    held = await world.pull(first, lane, limits)
    again = await world.pull(second, lane, limits)
    assert world.clock() - started_s >= limits.lease_s
    assert (again.seq, again.num_delivered) == (held.seq, 2)


async def test_extended_lease_keeps_the_prompt(world: World, lane: Lane) -> None:
    limits = LaneLimits(max_running=4, lease_s=3.0, idle_s=60)
    api, first, second = await world.broker("api"), await world.broker("worker"), await world.broker("worker")
    await api.publish_prompt(lane, b"x", msg_id=lane.model)
    held = await world.pull(first, lane, limits)
    for _ in range(12):
        await world.elapse(0.3)
        await held.extend()
        assert await second.pull(lane, limits) is None
    await held.ack()
    await world.until_empty(api, lane.model)


async def test_released_prompt_comes_back_at_once(world: World, lane: Lane) -> None:
    api, worker = await world.broker("api"), await world.broker("worker")
    await api.publish_prompt(lane, b"x", msg_id=lane.model)
    held = await world.pull(worker, lane)
    await held.release()
    again = await world.pull(worker, lane)
    assert (again.seq, again.num_delivered) == (held.seq, 2)


async def test_release_with_a_delay(world: World, lane: Lane) -> None:
    api, worker = await world.broker("api"), await world.broker("worker")
    await api.publish_prompt(lane, b"x", msg_id=lane.model)
    held = await world.pull(worker, lane)
    released_s = world.clock()
    await held.release(0.6)
    assert (await world.pull(worker, lane)).seq == held.seq
    assert world.clock() - released_s >= 0.6


async def test_lane_runs_no_more_than_it_may(world: World, lane: Lane) -> None:
    limits = LaneLimits(max_running=2, lease_s=30, idle_s=60)
    api, first, second = await world.broker("api"), await world.broker("worker"), await world.broker("worker")
    for number in range(3):
        await api.publish_prompt(lane, b"", msg_id=f"{lane.model}{number}")
    held = [await world.pull(first, lane, limits), await world.pull(second, lane, limits)]
    async with asyncio.timeout(WAIT_S / 2):
        assert await first.pull(lane, limits) is None
        assert await second.pull(lane, limits) is None
    await held[0].ack()
    assert (await world.pull(second, lane, limits)).seq not in {each.seq for each in held}


async def test_limits_of_a_lane_can_change(world: World, lane: Lane) -> None:
    api, worker = await world.broker("api"), await world.broker("worker")
    for number in range(2):
        await api.publish_prompt(lane, b"", msg_id=f"{lane.model}{number}")
    await world.pull(worker, lane, LaneLimits(max_running=1, lease_s=30, idle_s=60))
    assert await worker.pull(lane, LaneLimits(max_running=1, lease_s=30, idle_s=60)) is None
    await world.pull(worker, lane, LaneLimits(max_running=2, lease_s=30, idle_s=60))


async def test_many_pulls_at_once_get_each_prompt_once(world: World, lane: Lane) -> None:
    limits = LaneLimits(max_running=64, lease_s=30, idle_s=60)
    api, first, second = await world.broker("api"), await world.broker("worker"), await world.broker("worker")
    for number in range(20):
        await api.publish_prompt(lane, b"", msg_id=f"{lane.model}{number}")
    seqs: list[int] = []
    async with asyncio.timeout(30):
        while len(seqs) < 20:
            pulls = [broker.pull(lane, limits) for broker in (first, second) for _ in range(8)]
            seqs += [each.seq for each in await asyncio.gather(*pulls) if each is not None]
    assert len(set(seqs)) == 20


async def test_idle_consumer_goes_away_and_comes_back(world: World, lane: Lane) -> None:
    limits = LaneLimits(max_running=4, lease_s=30, idle_s=0.3)
    api, worker = await world.broker("api"), await world.broker("worker")
    assert await worker.pull(lane, limits) is None
    await world.elapse(1.0)
    await api.publish_prompt(lane, b"x", msg_id=lane.model)
    assert (await world.pull(worker, lane, limits)).body == b"x"


async def test_dropped_prompt_is_gone_held_or_not(world: World, lane: Lane) -> None:
    api, worker = await world.broker("api"), await world.broker("worker")
    seqs = [(await api.publish_prompt(lane, b"", msg_id=f"{lane.model}{number}")).seq for number in range(2)]
    held = await world.pull(worker, lane)
    assert held.seq == seqs[0]
    assert await api.drop_prompt(seqs[0])
    assert await api.drop_prompt(seqs[1])
    assert not await api.drop_prompt(seqs[1])
    await held.ack()
    await world.in_step()
    assert await worker.pull(lane, LIMITS) is None
    assert await api.backlog(lane.model) == {}


async def test_read_prompt(world: World, lane: Lane) -> None:
    api = await world.broker("api")
    receipt = await api.publish_prompt(lane, b"\x00\xff", msg_id=lane.model, headers={"traceparent": "00-1"})
    found = await api.read_prompt(receipt.seq)
    assert found is not None
    assert found[:2] == (lane, b"\x00\xff")
    assert found[2]["traceparent"] == "00-1"
    await api.drop_prompt(receipt.seq)
    assert await api.read_prompt(receipt.seq) is None


async def test_backlog_counts_waiting_and_held(world: World, lane: Lane) -> None:
    api, worker = await world.broker("api"), await world.broker("worker")
    batch = Lane(lane.model, ServiceClass.BATCH, "b c.d/e")
    for number, each in enumerate((lane, lane, batch)):
        await api.publish_prompt(each, b"", msg_id=f"{lane.model}{number}")
    await world.pull(worker, lane)
    assert await worker.backlog(lane.model) == {lane: 2, batch: 1}
    everything = await api.backlog()
    assert everything[lane] == 2
    assert everything[batch] == 1


async def test_bell_rings_with_headers(world: World, lane: Lane) -> None:
    api, worker = await world.broker("api"), await world.broker("worker")
    inbox = Inbox()
    subscription = await worker.listen_bells(lane.model, inbox.put)
    other = Lane(lane.model, ServiceClass.BATCH, WARM_UP)
    await world.warm_up(lambda: api.publish_prompt(other, b"", msg_id=secrets.token_hex(8)), inbox)
    receipt = await api.publish_prompt(lane, b"body", msg_id=lane.model, headers={"Inferflux-Prefix": "abc"})
    bell = await inbox.next(Bell)
    assert (bell.lane, bell.seq) == (lane, receipt.seq)
    assert bell.headers["Inferflux-Prefix"] == "abc"
    await subscription.close()
    await api.publish_prompt(lane, b"body", msg_id=f"{lane.model}2")
    await world.pull(worker, lane)
    assert inbox.empty


async def test_prompts_are_found_in_order_held_or_not(world: World, lane: Lane) -> None:
    api, worker = await world.broker("api"), await world.broker("worker")
    other = Lane(lane.model, ServiceClass.BATCH, "globex")
    before_s = time.time()
    seqs = [
        (await api.publish_prompt(each, b"%d" % number, msg_id=f"{lane.model}{number}", headers={"X": "y"})).seq
        for number, each in enumerate((lane, other, lane))
    ]
    await world.pull(worker, lane)
    for broker in (api, worker):
        first = await broker.next_prompt(seqs[0] - 1, lane)
        assert first is not None
        assert (first.seq, first.lane, first.body, first.headers["X"]) == (seqs[0], lane, b"0", "y")
        assert before_s - 5 < first.stored_s < time.time() + 5
        second = await broker.next_prompt(seqs[0])
        assert second is not None
        assert (second.seq, second.lane) == (seqs[1], other)
        third = await broker.next_prompt(seqs[0], lane)
        assert third is not None
        assert third.seq == seqs[2]
        assert await broker.next_prompt(seqs[2], lane) is None


async def test_prompts_in_flight_are_counted_by_lane(world: World, lane: Lane) -> None:
    api, worker = await world.broker("api"), await world.broker("worker")
    for number in range(3):
        await api.publish_prompt(lane, b"x", msg_id=f"{lane.model}{number}")
    held = [await world.pull(worker, lane) for _ in range(2)]
    async with asyncio.timeout(WAIT_S):
        # A cluster's servers are asked one by one, and not waited for.
        while (await api.in_flight()).get(lane) != 2:
            await world.elapse(0.01)
        await held[0].ack()
        while (await api.in_flight()).get(lane) != 1:
            await world.elapse(0.01)
        # On replicas the stream drops it a moment later.
        while await api.backlog(lane.model) != {lane: 2}:
            await world.elapse(0.01)


async def test_of_many_who_drop_a_prompt_one_did(world: World, lane: Lane) -> None:
    brokers = [await world.broker("api") for _ in range(4)]
    for number in range(10):
        receipt = await brokers[0].publish_prompt(lane, b"x", msg_id=f"{lane.model}{number}")
        dropped = await asyncio.gather(*(broker.drop_prompt(receipt.seq) for broker in brokers))
        assert sorted(dropped) == [False, False, False, True]
