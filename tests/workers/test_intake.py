"""What a worker believes to be waiting, while bells, gossip and the stream's own counts overtake each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from inferflux.broker.broker import Delivery, LaneLimits, Offer
from inferflux.broker.fairshare import FairShare
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import HEADER_MSG_ID, HEADER_PREFIX, Lane, ServiceClass
from inferflux.broker.wire.base import encode
from inferflux.config.settings import FairnessSettings, QueueSettings, Settings
from inferflux.registry.tenants import Tenants
from inferflux.workers import placement
from inferflux.workers.intake import Intake

LANE = Lane("m", ServiceClass.DEFAULT, "light")
SETTINGS = Settings(queue=QueueSettings(resync_interval_s=0.001), fairness=FairnessSettings(gossip_interval_s=600.0))


class SlowCounts(MemoryBroker):
    """Answers how much is stored with what was true when it was asked, each time on a word from the test."""

    def __init__(self) -> None:
        super().__init__(MemoryHub())
        self.asked = asyncio.Semaphore(0)
        self.answers = asyncio.Semaphore(0)

    async def backlog(self, model: str | None = None) -> dict[Lane, int]:
        stored = await super().backlog(model)
        self.asked.release()
        await self.answers.acquire()
        return stored


def new_intake(
    broker: MemoryBroker,
    settings: Settings,
    accept: Callable[[Delivery], None],
    *,
    fair: FairShare | None = None,
    attempts: Callable[[], Iterable[Any]] = tuple,
) -> Intake:
    return Intake(
        "m",
        broker,
        fair or FairShare("m", "w0", "epoch", settings.fairness),
        Tenants.from_settings(settings),
        settings,
        attempts=attempts,
        accept=lambda delivery, _: accept(delivery),
    )


@asynccontextmanager
async def pulling(intake: Intake) -> AsyncIterator[None]:
    """It listens and pulls; afterwards it has left."""
    await intake.join()
    running = asyncio.create_task(intake.run())
    try:
        async with asyncio.timeout(30):
            yield
    finally:
        intake.stop()
        await running
        await intake.leave()


class Scene:
    """A worker without an engine: it hears everything and pulls nothing."""

    def __init__(self) -> None:
        self.broker = SlowCounts()
        self.fair = FairShare("m", "w0", "e", SETTINGS.fairness)
        self.intake = new_intake(self.broker, SETTINGS, lambda _: None, fair=self.fair)

    async def join(self) -> None:
        """Begin to listen; the first count is under way then."""
        await self.intake.join()
        await self.broker.asked.acquire()

    async def count(self) -> None:
        """Have the count that is under way answered, and wait until it was taken in and the next one is asked for."""
        self.broker.answers.release()
        await self.broker.asked.acquire()

    async def publish(self, msg_id: str) -> int:
        seq = (await self.broker.publish_prompt(LANE, b"{}", msg_id=msg_id)).seq
        await asyncio.sleep(0)
        return seq

    async def another_holds(self, num_running: int) -> None:
        other = FairShare("m", "w1", "e", SETTINGS.fairness)
        await self.broker.send_gossip("m", encode(other.gossip(0.0, 0, "cpu", {LANE: num_running})))
        await asyncio.sleep(0)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    await scene.intake.leave()


async def test_a_prompt_that_came_while_the_stream_counted_still_waits(scene: Scene) -> None:
    await scene.join()
    seq = await scene.publish("first")
    await scene.count()
    await scene.count()
    await scene.broker.drop_prompt(seq)
    await scene.count()
    await scene.publish("second")
    await scene.count()
    assert scene.fair.num_waiting(LANE) >= 1, "its bell was forgotten for a count of before"


async def test_a_prompt_that_came_after_the_last_gossip_still_waits(scene: Scene) -> None:
    """Somebody held the tenant's last prompt when he said so; it was answered, and the next one is here."""
    await scene.join()
    await scene.another_holds(1)
    await scene.publish("next")
    for _ in range(2):
        await scene.count()
    assert scene.fair.num_waiting(LANE) == 1


async def test_what_others_hold_does_not_wait(scene: Scene) -> None:
    await scene.publish("held elsewhere")
    await scene.join()
    await scene.another_holds(1)
    await scene.count()
    assert scene.fair.num_waiting(LANE) == 0


async def test_a_lane_that_was_emptied_is_empty_after_the_next_count(scene: Scene) -> None:
    await scene.join()
    seq = await scene.publish("first")
    await scene.broker.drop_prompt(seq)
    for _ in range(3):
        await scene.count()
    assert scene.fair.num_waiting(LANE) == 0


def engine(num_slots: int) -> Any:
    """As much of a host as pulling asks for."""
    return SimpleNamespace(
        num_slots=num_slots,
        stalled_s=lambda: 0.0,
        capacity=SimpleNamespace(hardware="gpu"),
        stats=lambda: SimpleNamespace(batch_is_owed=True),
    )


class SlowDisk(MemoryBroker):
    """Says "nothing" to the first pull of a lane that has prompts."""

    num_pulls = 0

    async def pull(self, lane: Lane, limits: LaneLimits) -> Delivery | None:
        self.num_pulls += 1
        return None if self.num_pulls == 1 else await super().pull(lane, limits)


async def test_a_lane_that_ought_to_have_something_is_counted_again_at_once() -> None:
    broker = SlowDisk(MemoryHub())
    settings = Settings(
        queue=QueueSettings(resync_interval_s=3600.0), fairness=FairnessSettings(gossip_interval_s=0.01)
    )
    pulled: asyncio.Queue[Delivery] = asyncio.Queue()
    intake = new_intake(broker, settings, pulled.put_nowait)
    intake.host = engine(1)
    for number in range(3):
        await broker.publish_prompt(LANE, b"{}", msg_id=str(number))
    async with pulling(intake):
        await pulled.get()
    assert broker.num_pulls >= 2


class Waiting(MemoryBroker):
    """Something is answered on a word from the test, at the latest when it has ended."""

    def __init__(self) -> None:
        super().__init__(MemoryHub())
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def answers(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.answer.set()


class MutePeer(Waiting):
    """What waits are offers."""

    async def forward(self, delivery: Delivery, to: str, offer: Offer) -> bool:
        self.asked.set()
        await self.answer.wait()
        return True


async def test_a_prompt_on_offer_holds_back_no_other_and_is_still_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MutePeer()
    settings = Settings(fairness=FairnessSettings(gossip_interval_s=0.01))
    fair = FairShare("m", "w0", "e", settings.fairness)
    holder = FairShare("m", "w1", "f", settings.fairness)
    gossip = holder.gossip(0.0, 4, "gpu", prefixes=("0123abcd",), num_slots=4)
    monkeypatch.setattr(fair, "peers", lambda _: [gossip])
    monkeypatch.setattr(placement, "WAIT_S", 0.0)
    pulled: asyncio.Queue[Delivery] = asyncio.Queue()
    intake = new_intake(broker, settings, pulled.put_nowait, fair=fair)
    intake.host = engine(2)
    async with pulling(intake), broker.answers():
        headers = {HEADER_PREFIX: "0123abcd"}
        await broker.publish_prompt(LANE, b"{}", msg_id="offered", headers=headers)
        await broker.asked.wait()
        assert intake.awaits(LANE.tenant), "its cancel would be lost"
        await broker.publish_prompt(LANE, b"{}", msg_id="another")
        assert (await pulled.get()).headers[HEADER_MSG_ID] == "another"
        broker.answer.set()
        while intake._placing:
            await asyncio.sleep(0)
    assert pulled.empty()
    assert (intake.num_free_slots, intake._tell(0.0).num_slots) == (0, 0), "who leaves has no room"


class HeldPulls(Waiting):
    """What waits are pulls."""

    async def pull(self, lane: Lane, limits: LaneLimits) -> Delivery | None:
        self.asked.set()
        await self.answer.wait()
        return await super().pull(lane, limits)


@pytest.mark.parametrize("empty", [False, True], ids=["a prompt comes", "nothing comes"])
async def test_a_slot_that_a_pull_may_fill_is_not_given_to_an_offer(
    empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "DECIDE_S", 60.0)
    monkeypatch.setattr("inferflux.broker.memory.FORWARD_S", 60.0)
    broker = HeldPulls()
    settings = Settings(fairness=FairnessSettings(gossip_interval_s=0.01))
    held: list[Any] = []

    def hold(delivery: Delivery) -> None:
        held.append(SimpleNamespace(delivery=delivery, host=intake.host, num_slots=1, charged=True))

    intake = new_intake(broker, settings, hold, attempts=lambda: held)
    intake.host = engine(1)
    other = MemoryBroker(broker.hub)
    for msg_id in ("offered", "another"):
        await other.publish_prompt(LANE, b"{}", msg_id=msg_id)
    offered = await other.pull(LANE, LaneLimits(max_running=2, lease_s=30.0, idle_s=600.0))
    assert offered is not None
    async with pulling(intake), broker.answers():
        await broker.asked.wait()
        if empty:
            await other.drop_prompt(offered.seq + 1)
        forwarding = asyncio.create_task(other.forward(offered, "epoch", Offer("w1", 1.0)))
        while not intake.placement._undecided:
            await asyncio.sleep(0)
        broker.answer.set()
        assert await forwarding is empty
        assert [each.delivery.headers[HEADER_MSG_ID] for each in held] == ["offered" if empty else "another"]
