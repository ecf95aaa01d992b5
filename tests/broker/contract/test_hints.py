"""Cancels and gossip: hints between processes, lost without harm."""

from __future__ import annotations

import logging
from functools import partial

import pytest
from harness.world import WARM_UP, Inbox, World

from inferflux.broker.subjects import Lane, RequestKey


async def test_cancel_reaches_every_worker(world: World, key: RequestKey) -> None:
    api, workers = await world.broker("api"), [await world.broker("worker") for _ in range(2)]
    inboxes = [Inbox(), Inbox()]
    for worker, inbox in zip(workers, inboxes, strict=True):
        await worker.listen_cancels(inbox.put)
    await world.warm_up(lambda: api.send_cancel(RequestKey(key.owner, WARM_UP)), *inboxes)
    await api.send_cancel(key)
    assert [await inbox.next(RequestKey) for inbox in inboxes] == [key, key]


async def test_gossip_stays_within_its_model(world: World, lane: Lane) -> None:
    first, second = await world.broker("worker"), await world.broker("worker")
    inbox, other = Inbox(), Inbox()
    await second.listen_gossip(lane.model, inbox.put)
    subscription = await second.listen_gossip(f"{lane.model}x", other.put)
    for model, heard in ((lane.model, inbox), (f"{lane.model}x", other)):
        await world.warm_up(partial(first.send_gossip, model, WARM_UP.encode()), heard)
    await first.send_gossip(lane.model, b"1")
    assert await inbox.next(bytes) == b"1"
    await first.send_gossip(f"{lane.model}x", b"2")
    assert await other.next(bytes) == b"2"
    await subscription.close()
    await first.send_gossip(f"{lane.model}x", b"3")
    await first.send_gossip(lane.model, b"4")
    assert await inbox.next(bytes) == b"4"
    assert other.empty
    assert inbox.empty


async def test_a_listener_hears_all_that_is_sent_after_it_was_made(world: World, lane: Lane) -> None:
    if world.servers is not None and world.servers.num_nodes > 1:
        pytest.skip("interest takes a moment to reach the other servers")
    first, second = await world.broker("worker"), await world.broker("worker")
    for number in range(50):
        inbox = Inbox()
        await second.listen_gossip(f"{lane.model}{number}", inbox.put)
        await first.send_gossip(f"{lane.model}{number}", b"heard")
        assert await inbox.next(bytes) == b"heard"


async def test_callback_that_raises_is_logged_and_survived(
    world: World, lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await world.broker("worker"), await world.broker("worker")
    heard = Inbox()

    def on_gossip(body: bytes) -> None:
        if body == b"bad":
            raise RuntimeError("a bug in a callback")
        heard.put(body)

    await second.listen_gossip(lane.model, on_gossip)
    await world.warm_up(lambda: first.send_gossip(lane.model, WARM_UP.encode()), heard)
    with caplog.at_level(logging.ERROR):
        await first.send_gossip(lane.model, b"bad")
        await first.send_gossip(lane.model, b"good")
        assert await heard.next(bytes) == b"good"
    assert "handler failed" in caplog.text
    assert second.connected
