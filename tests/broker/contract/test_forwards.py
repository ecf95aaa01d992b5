"""Forwards: a prompt that one worker pulled is offered to another, and its lease goes along."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from harness.world import WAIT_S, World

from inferflux.broker.broker import Broker, Delivery, Forwarded, Offer
from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.subjects import Lane

OFFER = Offer("first", 0.5, 7)


class Offers:
    """What a worker process was offered."""

    def __init__(self, answer: Callable[[], bool]) -> None:
        self.forwards: list[Forwarded] = []
        self._answer = answer

    def hear(self, forward: Forwarded) -> None:
        self.forwards.append(forward)
        forward.answer(self._answer())


async def forward(broker: Broker, delivery: Delivery, offers: Offers) -> bool:
    """Offer it once the other is known to listen, which in a cluster takes a moment."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            taken = await broker.forward(delivery, "epoch", OFFER)
        except BrokerUnavailable:
            # A busy machine was too slow to answer, and may have taken it all the same.
            taken = bool(offers.forwards)
        if offers.forwards or time.monotonic() > deadline_s:
            return taken
        await asyncio.sleep(0.01)


async def pulled(world: World, lane: Lane) -> tuple[Broker, Delivery]:
    api, first = await world.broker("api"), await world.broker("worker")
    await api.publish_prompt(lane, b"body", msg_id=lane.model, headers={"Inferflux-Prefix": "12ab"})
    return first, await world.pull(first, lane)


async def test_a_prompt_that_is_taken_is_as_it_was_and_acknowledged_by_who_took_it(world: World, lane: Lane) -> None:
    first, delivery = await pulled(world, lane)
    second, offers = await world.broker("worker"), Offers(lambda: True)
    await second.listen_forwards(lane.model, "epoch", offers.hear)
    assert await forward(first, delivery, offers)
    (came,) = offers.forwards
    assert came.offer == OFFER
    for name in ("lane", "body", "headers", "seq", "stored_s", "num_delivered", "num_pending"):
        assert getattr(came.delivery, name) == getattr(delivery, name), name
    await came.delivery.extend()
    await came.delivery.ack()
    await world.until_empty(first, lane.model)


async def test_who_took_a_prompt_may_hand_it_back(world: World, lane: Lane) -> None:
    first, delivery = await pulled(world, lane)
    second, offers = await world.broker("worker"), Offers(lambda: True)
    await second.listen_forwards(lane.model, "epoch", offers.hear)
    assert await forward(first, delivery, offers)
    await offers.forwards[0].delivery.release()
    again = await world.pull(first, lane)
    assert (again.seq, again.num_delivered) == (delivery.seq, 2)


async def test_what_is_refused_stays_with_who_pulled_it(world: World, lane: Lane) -> None:
    first, delivery = await pulled(world, lane)
    second, offers = await world.broker("worker"), Offers(lambda: False)
    await second.listen_forwards(lane.model, "epoch", offers.hear)
    assert not await forward(first, delivery, offers)
    await delivery.ack()
    await world.until_empty(first, lane.model)


async def test_nobody_takes_what_is_offered_to_nobody(world: World, lane: Lane) -> None:
    first, delivery = await pulled(world, lane)
    second, offers = await world.broker("worker"), Offers(lambda: True)
    subscription = await second.listen_forwards(lane.model, "epoch", offers.hear)
    await subscription.close()
    async with asyncio.timeout(WAIT_S):
        # A server may believe for a moment that the listener is there.
        while True:
            try:
                assert not await first.forward(delivery, "epoch", OFFER)
                break
            except BrokerUnavailable:
                continue
    assert not offers.forwards


async def test_without_an_answer_nobody_knows(world: World, lane: Lane) -> None:
    def fails() -> bool:
        raise RuntimeError("a bug in a callback")

    first, delivery = await pulled(world, lane)
    second, offers = await world.broker("worker"), Offers(fails)
    await second.listen_forwards(lane.model, "epoch", offers.hear)
    while True:
        try:
            assert not await first.forward(delivery, "epoch", OFFER), "it was taken"
        except BrokerUnavailable:
            break
    assert len(offers.forwards) <= 1
