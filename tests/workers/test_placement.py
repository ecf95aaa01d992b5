"""Who computes a prompt that was pulled: whoever has its beginning, else whoever has least to do."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from inferflux.broker.broker import Bell, Delivery, LaneLimits, Offer
from inferflux.broker.errors import BrokerError
from inferflux.broker.fairshare import FairShare
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import HEADER_PREFIX, Lane, ServiceClass
from inferflux.broker.wire.fleet import Gossip, Hardware
from inferflux.config.settings import FairnessSettings
from inferflux.workers import placement
from inferflux.workers.advance import Advance
from inferflux.workers.placement import Placement, Room

LANE = Lane("m", ServiceClass.DEFAULT, "acme")
LIMITS = LaneLimits(max_running=100, lease_s=30.0, idle_s=600.0)
SETTINGS = FairnessSettings(gossip_interval_s=600.0)
PREFIX = "0123abcd"


class Node:
    """A worker that computes nothing: its prompts stay with it."""

    def __init__(self, hub: MemoryHub, name: str, num_slots: int = 8, hardware: Hardware = "cpu") -> None:
        self.name = name
        self.broker = MemoryBroker(hub)
        self.fair = FairShare("m", name, f"epoch-{name}", SETTINGS)
        self.held: list[tuple[Delivery, str | None]] = []
        self.open = True
        self.advance = Advance(self.fair)
        self.room = Room(num_slots, 0, hardware)
        self.placement = Placement("m", self.broker, self.fair, self.advance, room=self._room, accept=self._accept)

    @property
    def num_held(self) -> int:
        return len(self.held)

    def gossip(self) -> Gossip:
        room = self._room()
        num_slots, num_free = (0, 0) if room is None else (room.num_slots, room.num_free)
        return self.fair.gossip(
            0.0, num_free, self.room.hardware, prefixes=self.placement.prefixes, num_slots=num_slots
        )

    def _room(self) -> Room | None:
        return self.room._replace(num_used=self.room.num_used + self.num_held) if self.open else None

    def _accept(self, delivery: Delivery, rival: str | None) -> None:
        self.held.append((delivery, rival))


class Scene:
    """Two workers that know of each other what `gossip` last told."""

    def __init__(self) -> None:
        self.hub = MemoryHub()
        self.first, self.second = Node(self.hub, "first"), Node(self.hub, "second")
        self._num_published = 0

    async def join(self) -> None:
        for node in (self.first, self.second):
            await node.placement.join()
        self.gossip()

    def gossip(self) -> None:
        loop_s = asyncio.get_running_loop().time()
        self.first.fair.merge(self.second.gossip(), loop_s)
        self.second.fair.merge(self.first.gossip(), loop_s)

    async def pull(self, prefix: str | None = PREFIX) -> Delivery:
        self._num_published += 1
        headers = {} if prefix is None else {HEADER_PREFIX: prefix}
        await self.first.broker.publish_prompt(LANE, b"{}", msg_id=str(self._num_published), headers=headers)
        delivery = await self.first.broker.pull(LANE, LIMITS)
        assert delivery is not None
        return delivery

    @property
    def held(self) -> tuple[int, int]:
        return self.first.num_held, self.second.num_held


@pytest.fixture
async def scene() -> Scene:
    scene = Scene()
    await scene.join()
    return scene


async def test_a_prompt_goes_to_whoever_has_its_beginning(scene: Scene) -> None:
    scene.second.placement.remember(PREFIX)
    scene.gossip()
    delivery = await scene.pull()
    await scene.first.placement.place(delivery)
    assert scene.held == (0, 1)
    (taken, rival) = scene.second.held[0]
    assert (taken.seq, rival) == (delivery.seq, "first")
    assert scene.first.placement.num_offered == {"taken": 1}


async def test_two_that_come_at_once_change_places(scene: Scene) -> None:
    scene.first.placement.remember("mine")
    scene.second.placement.remember("theirs")
    scene.gossip()
    theirs, mine = await scene.pull("theirs"), await scene.pull("mine")
    await asyncio.gather(scene.first.placement.place(theirs), scene.second.placement.place(mine))
    assert [each[0].headers[HEADER_PREFIX] for each in scene.first.held] == ["mine"]
    assert [each[0].headers[HEADER_PREFIX] for each in scene.second.held] == ["theirs"]


async def test_what_has_been_delivered_before_stays(scene: Scene) -> None:
    scene.second.placement.remember(PREFIX)
    scene.gossip()
    await (await scene.pull()).release()
    again = await scene.first.broker.pull(LANE, LIMITS)
    assert again is not None
    await scene.first.placement.place(again)
    assert scene.held == (1, 0)
    assert scene.first.held[0][1] is None


@pytest.mark.parametrize(("more", "computed_twice"), [(4, False), (5, True)])
async def test_a_beginning_that_many_share_is_computed_twice_before_one_works_and_the_other_idles(
    scene: Scene, more: int, computed_twice: bool
) -> None:
    scene.second.placement.remember(PREFIX)
    scene.second.room = scene.second.room._replace(num_slots=8, num_used=more)
    scene.gossip()
    await scene.first.placement.place(await scene.pull())
    assert scene.held == ((1, 0) if computed_twice else (0, 1))


async def test_a_prompt_without_a_known_beginning_goes_to_who_has_least_to_do(scene: Scene) -> None:
    for _ in range(8):
        await scene.first.placement.place(await scene.pull(None))
    assert scene.held == (4, 4), "all of it without any news"


async def test_others_pull_for_themselves_where_enough_waits(scene: Scene) -> None:
    for num_waiting, held in ((8, (1, 0)), (7, (1, 1))):
        scene.first.fair.set_backlog(LANE, num_waiting, 0.0)
        await scene.first.placement.place(await scene.pull(None))
        assert scene.held == held


async def test_a_burst_is_shared_while_nobody_has_answered_yet(scene: Scene) -> None:
    pulled = [await scene.pull(None) for _ in range(8)]
    await asyncio.gather(*(scene.first.placement.place(each) for each in pulled))
    assert scene.held == (4, 4)


async def test_who_refuses_is_not_asked_again_before_it_has_spoken(scene: Scene) -> None:
    scene.second.room = scene.second.room._replace(num_used=3)
    for _ in range(3):
        await scene.first.placement.place(await scene.pull(None))
    assert scene.held == (3, 0)
    assert scene.first.placement.num_offered == {"refused": 1}
    scene.second.room = scene.second.room._replace(num_used=0)
    scene.gossip()
    await scene.first.placement.place(await scene.pull(None))
    assert scene.held == (3, 1)


async def test_whoever_refused_for_its_load_is_still_asked_for_its_cache(scene: Scene) -> None:
    scene.second.placement.remember(PREFIX)
    scene.gossip()
    scene.second.room = scene.second.room._replace(num_used=3)
    for _ in range(2):
        await scene.first.placement.place(await scene.pull(None))
    await scene.first.placement.place(await scene.pull())
    assert scene.held == (2, 1)
    assert scene.first.placement.num_offered == {"refused": 1, "taken": 1}


async def test_nobody_takes_more_than_it_has_slots(scene: Scene) -> None:
    scene.second.placement.remember(PREFIX)
    scene.gossip()
    scene.second.room = scene.second.room._replace(num_used=8)
    await scene.first.placement.place(await scene.pull())
    assert scene.held == (1, 0)
    scene.gossip()
    await scene.first.placement.place(await scene.pull("another beginning"))
    assert scene.first.placement.num_offered == {"refused": 1}, "asked although it said that it is full"


async def test_what_a_worker_is_pulling_has_its_slots_until_the_pull_has_ended(scene: Scene) -> None:
    scene.second.room = scene.second.room._replace(num_used=6, num_coming=2)
    scene.first.room = scene.first.room._replace(num_used=8)
    scene.gossip()
    placing = asyncio.create_task(scene.first.placement.place(await scene.pull()))
    while not scene.first.placement.num_offered and not scene.second.placement._undecided:
        await asyncio.sleep(0)
    assert scene.held == (0, 0)
    scene.second.room = scene.second.room._replace(num_coming=1)
    scene.second.placement.settle()
    await placing
    assert scene.held == (0, 1)
    assert scene.first.placement.num_offered == {"taken": 1}


async def test_a_pull_that_lasts_does_not_keep_an_offer_waiting(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "DECIDE_S", 0.0)
    scene.second.placement.remember(PREFIX)
    scene.second.room = scene.second.room._replace(num_coming=8)
    scene.gossip()
    await scene.first.placement.place(await scene.pull())
    assert scene.held == (1, 0)
    assert scene.first.placement.num_offered == {"refused": 1}
    scene.second.room = scene.second.room._replace(num_coming=0)
    scene.second.placement.settle()
    assert scene.held == (1, 0), "taken after it was refused"


async def test_who_leaves_refuses_what_it_has_not_decided_about(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "DECIDE_S", 60.0)
    scene.second.placement.remember(PREFIX)
    scene.second.room = scene.second.room._replace(num_coming=8)
    scene.gossip()
    placing = asyncio.create_task(scene.first.placement.place(await scene.pull()))
    while not scene.second.placement._undecided:
        await asyncio.sleep(0)
    scene.second.open = False
    await scene.second.placement.leave()
    await placing
    assert scene.first.placement.num_offered == {"refused": 1}


async def test_who_is_full_keeps_nothing_that_another_could_start(scene: Scene) -> None:
    scene.first.placement.remember(PREFIX)
    scene.first.room = scene.first.room._replace(num_used=8)
    scene.second.room = scene.second.room._replace(num_used=4)
    scene.gossip()
    await scene.first.placement.place(await scene.pull())
    assert scene.held == (0, 1)


async def test_load_is_the_share_of_the_slots(scene: Scene) -> None:
    scene.first.room = scene.first.room._replace(num_slots=64, num_used=3)
    scene.second.room = scene.second.room._replace(num_slots=4, num_used=2)
    scene.gossip()
    await scene.first.placement.place(await scene.pull(None))
    assert scene.held == (1, 0)
    await scene.second.placement.place(await scene.pull(None))
    assert scene.held == (2, 0)


async def test_a_large_prompt_stays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "MAX_FORWARD_BYTES", 1)
    scene.second.placement.remember(PREFIX)
    scene.gossip()
    await scene.first.placement.place(await scene.pull())
    assert scene.held == (1, 0)


async def test_what_was_paid_for_a_prompt_goes_along(scene: Scene) -> None:
    scene.second.placement.remember(PREFIX)
    scene.gossip()
    scene.first.advance.pay(LANE, 2, 0.0)
    paid = scene.first.fair.counter("acme")
    await scene.first.placement.place(await scene.pull())
    scene.second.advance.charge(LANE, 1, 0, 0.0)
    assert scene.second.fair.counter("acme") == 0, "it was paid for twice"
    scene.first.advance.pay(LANE, 2, 0.0)
    assert scene.first.fair.counter("acme") == paid + 1, "the next prompt was not paid for"


async def test_a_refused_prompt_stays_paid(scene: Scene) -> None:
    scene.second.placement.remember(PREFIX)
    scene.gossip()
    scene.second.open = False
    scene.first.advance.pay(LANE, 1, 0.0)
    paid = scene.first.fair.counter("acme")
    await scene.first.placement.place(await scene.pull())
    assert scene.held == (1, 0)
    scene.first.advance.charge(LANE, 1, 0, 0.0)
    assert scene.first.fair.counter("acme") == paid


class Forbidding(MemoryBroker):
    """Its NATS user may not forward."""

    num_asked = 0

    async def forward(self, delivery: Delivery, to: str, offer: Offer) -> bool:
        self.num_asked += 1
        raise BrokerError("NATS permissions refuse it")


async def test_without_the_permission_prompts_stay_and_nobody_is_asked_for_a_while(scene: Scene) -> None:
    scene.second.placement.remember(PREFIX)
    scene.gossip()
    broker = Forbidding(scene.hub)
    scene.first.placement._broker = broker
    for _ in range(3):
        scene.gossip()
        await scene.first.placement.place(await scene.pull())
    assert scene.held == (3, 0)
    assert [rival for _, rival in scene.first.held] == [None] * 3
    assert broker.num_asked == 1


async def test_a_worker_that_does_not_know_of_forwards_is_offered_none(scene: Scene) -> None:
    scene.second.placement.remember(PREFIX)
    told = msgspec.structs.replace(scene.second.gossip(), num_slots=0)
    scene.first.fair.merge(told, asyncio.get_running_loop().time())
    await scene.first.placement.place(await scene.pull())
    assert scene.held == (1, 0)
    assert not scene.first.placement.num_offered


async def test_who_leaves_takes_nothing_and_gives_nothing(scene: Scene) -> None:
    scene.second.placement.remember(PREFIX)
    scene.gossip()
    scene.first.open = False
    await scene.first.placement.place(await scene.pull())
    assert scene.held == (1, 0)
    scene.first.open, scene.second.open = True, False
    await scene.first.placement.place(await scene.pull())
    assert scene.held == (2, 0)


async def test_a_gpu_leaves_nothing_to_a_cpu() -> None:
    scene = Scene()
    scene.first.room = scene.first.room._replace(hardware="gpu", num_used=4)
    scene.second.placement.remember(PREFIX)
    await scene.join()
    await scene.first.placement.place(await scene.pull())
    await scene.first.placement.place(await scene.pull(None))
    assert scene.held == (2, 0)


async def test_without_an_answer_the_other_may_have_it_too(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferflux.broker.memory.FORWARD_S", 0.0)
    scene.second.placement.remember(PREFIX)
    scene.gossip()
    await scene.first.placement.place(await scene.pull())
    assert scene.first.held[0][1] == "second"
    assert scene.first.placement.num_offered == {"unanswered": 1}


async def test_a_bell_waits_for_the_holder_only_while_it_has_room(scene: Scene) -> None:
    bell = Bell(LANE, 1, {HEADER_PREFIX: PREFIX})
    assert scene.first.placement.wait_s(bell) == 0.0
    scene.second.placement.remember(PREFIX)
    scene.gossip()
    assert scene.first.placement.wait_s(bell) == placement.WAIT_S
    scene.second.room = scene.second.room._replace(num_used=scene.second.room.num_slots)
    scene.gossip()
    assert scene.first.placement.wait_s(bell) == 0.0
    scene.second.room = scene.second.room._replace(num_used=0)
    scene.gossip()
    scene.first.placement.remember(PREFIX)
    assert scene.first.placement.wait_s(bell) == 0.0, "it has it itself"


def test_a_cache_that_was_cleared_is_spoken_of_no_more() -> None:
    node = Node(MemoryHub(), "alone")
    for number in range(placement.MAX_PREFIXES + 1):
        node.placement.remember(str(number))
    assert node.placement.prefixes == tuple(map(str, range(1, placement.MAX_PREFIXES + 1)))
    node.placement.forget()
    assert node.placement.prefixes == ()
