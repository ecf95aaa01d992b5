"""Tapes whose purge was due in a process that is gone."""

from __future__ import annotations

import pytest

from inferflux.api.cancel import Canceller, Order
from inferflux.api.leftovers import Leftovers
from inferflux.broker.broker import LaneLimits
from inferflux.broker.errors import Code
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.requests import Claim, Frame, Usage, failure

WINDOW_S = 60.0
KEY = RequestKey("a-replica", "r1")
LANE = Lane("m", ServiceClass.DEFAULT, "t")
LIMITS = LaneLimits(max_running=4, lease_s=30, idle_s=300)
END = Frame(id="r1", attempt=1, usage=Usage(prompt_tokens=1, completion_tokens=1))


class Scene:
    """A request that was answered; its worker is gone, and with it the timer of the purge."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(MemoryHub())
        self.leftovers = Leftovers(self.broker, WINDOW_S)
        self.fence = 0

    async def begin(self) -> None:
        receipt = await self.broker.publish_prompt(LANE, b"{}", msg_id="r1")
        self.held = await self.broker.pull(LANE, LIMITS)
        self.fence = await self.broker.put_claim(KEY, Claim(worker="w", prompt=receipt.seq), expected_seq=0)
        await self.broker.send_frame(KEY, encode(Frame(id="r1", attempt=1, text="a")))

    async def end(self) -> None:
        await self.broker.put_terminal(KEY, encode(END), fence=self.fence)

    async def ack(self) -> None:
        assert self.held is not None
        await self.held.ack()

    async def look(self, *windows: float) -> list[int]:
        """What a look at each of these times purges."""
        return [await self.leftovers.look(each * WINDOW_S) for each in windows]


@pytest.fixture
async def scene() -> Scene:
    scene = Scene()
    await scene.begin()
    return scene


async def test_an_ended_tape_goes_and_not_before_its_window_is_over(scene: Scene) -> None:
    await scene.end()
    await scene.ack()
    assert await scene.look(0, 1, 2, 2.9) == [0, 0, 0, 0]
    assert await scene.broker.claimed() == [KEY]
    assert await scene.look(3) == [1]
    assert await scene.broker.claimed() == []


async def test_what_runs_stays(scene: Scene) -> None:
    assert sum(await scene.look(*range(20))) == 0
    await scene.end()
    await scene.ack()
    assert await scene.look(20, 20.9, 21, 22) == [0, 0, 1, 0]


async def test_the_end_of_a_prompt_that_is_still_stored_stays(scene: Scene) -> None:
    """Its worker died before the ack: whoever pulls it next must find the terminal frame, or would answer again."""
    await scene.end()
    assert sum(await scene.look(*range(20))) == 0
    await scene.ack()
    assert sum(await scene.look(*range(20, 23))) == 1


async def test_what_a_stopped_replica_has_cancelled_goes(scene: Scene) -> None:
    canceller = Canceller(scene.broker, "a-replica", WINDOW_S)
    receipt = await scene.broker.publish_prompt(LANE, b"{}", msg_id="r2")
    other = RequestKey("a-replica", "r2")
    assert await canceller.cancel(Order(other, receipt.seq, failure(Code.CANCELLED, "away")))
    await canceller.drain(1.0)
    assert other in await scene.broker.claimed()
    await scene.look(0, 1, 2, 3)
    assert await scene.broker.claimed() == [KEY]
