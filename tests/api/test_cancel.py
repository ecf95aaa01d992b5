from __future__ import annotations

import asyncio
from typing import Any

import pytest

from inferflux.api import cancel
from inferflux.api.cancel import Canceller, Order
from inferflux.broker.broker import LaneLimits
from inferflux.broker.errors import ClaimLost, Code
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.requests import Claim, Frame, Usage, decode_frame, failure

KEY = RequestKey("a-replica", "r1")
LANE = Lane("m", ServiceClass.DEFAULT, "t")
WHY = failure(Code.CANCELLED, "the client went away")


class Scene:
    """One stored prompt, and somebody who cancels it."""

    def __init__(self) -> None:
        self.hub = MemoryHub()
        self.broker = MemoryBroker(self.hub)
        self.canceller = Canceller(self.broker, "a-replica", window_s=0.05)
        self.hints: list[RequestKey] = []

    async def order(self) -> Order:
        await self.broker.listen_cancels(self.hints.append)
        receipt = await self.broker.publish_prompt(LANE, b"{}", msg_id="r1")
        return Order(KEY, receipt.seq, WHY)

    async def terminals(self) -> list[Frame]:
        tape = await self.broker.read_tape(KEY)
        return [frame for entry in tape.frames if (frame := decode_frame(entry.body)).terminal]


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_queued_prompt_is_removed_and_ends(scene: Scene) -> None:
    assert await scene.canceller.cancel(await scene.order())
    await asyncio.sleep(0)

    assert await scene.broker.backlog() == {}
    (end,) = await scene.terminals()
    assert end.error == WHY
    last = await scene.broker.last_claim(KEY)
    assert last is not None
    assert (last[1].state, last[1].num_attempts, last[1].worker) == ("cancelled", 0, "a-replica")
    assert scene.hints == [KEY]


async def test_running_worker_loses_its_claim(scene: Scene) -> None:
    order = await scene.order()
    held = await scene.broker.pull(LANE, LaneLimits(max_running=1, lease_s=30, idle_s=300))
    seq = await scene.broker.put_claim(KEY, Claim(worker="w"), expected_seq=0)

    assert await scene.canceller.cancel(order)

    assert held is not None
    with pytest.raises(ClaimLost):
        await scene.broker.put_terminal(KEY, encode(Frame(id="r1", attempt=seq, usage=Usage())), fence=seq)
    assert len(await scene.terminals()) == 1


async def test_claim_that_comes_in_between_is_met_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    order = await scene.order()
    seen = scene.broker.last_claim
    claimed = False

    async def outrun(key: RequestKey) -> Any:
        nonlocal claimed
        last = await seen(key)
        if not claimed:
            claimed = True
            await scene.broker.put_claim(key, Claim(worker="w"), expected_seq=0)
        return last

    monkeypatch.setattr(scene.broker, "last_claim", outrun)
    assert await scene.canceller.cancel(order)

    assert (await scene.terminals())[0].error == WHY


async def test_answer_that_was_just_finished_stays_the_only_end(scene: Scene) -> None:
    order = await scene.order()
    seq = await scene.broker.put_claim(KEY, Claim(worker="w"), expected_seq=0)
    await scene.broker.put_terminal(KEY, encode(Frame(id="r1", attempt=seq, usage=Usage())), fence=seq)

    assert await scene.canceller.cancel(order)

    (end,) = await scene.terminals()
    assert end.usage is not None


async def test_cancelling_twice_ends_once(scene: Scene) -> None:
    order = await scene.order()

    assert await scene.canceller.cancel(order)
    assert await scene.canceller.cancel(order)

    assert len(await scene.terminals()) == 1


@pytest.mark.parametrize(("state", "over"), [("running", False), ("released", True)])
async def test_unless_running_spares_a_running_claim_only(scene: Scene, state: Any, over: bool) -> None:
    order = await scene.order()
    await scene.broker.put_claim(KEY, Claim(worker="w", state=state), expected_seq=0)

    assert await scene.canceller.cancel(order, unless_running=True) is over
    assert len(await scene.terminals()) == int(over)


async def test_outage_is_waited_out(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel, "RETRY_S", 0.01)
    order = await scene.order()
    scene.hub.online = False
    scene.canceller.start(order)
    await asyncio.sleep(0.05)
    scene.hub.online = True

    await scene.canceller.drain(5)

    assert len(await scene.terminals()) == 1


async def test_tape_is_purged_after_the_window(scene: Scene) -> None:
    order = await scene.order()

    assert await scene.canceller.cancel(order)

    assert len(await scene.terminals()) == 1
    async with asyncio.timeout(30):
        while (await scene.broker.read_tape(KEY)).claim is not None:
            await asyncio.sleep(0.01)
    assert await scene.broker.tape_fill() == 0


async def test_claim_stays_for_a_prompt_that_may_yet_be_stored(scene: Scene) -> None:
    await scene.canceller.cancel(Order(KEY, None, WHY))

    await asyncio.sleep(0.1)

    assert (await scene.broker.last_claim(KEY)) is not None


async def test_drain_gives_up_in_time(scene: Scene) -> None:
    order = await scene.order()
    scene.hub.online = False
    scene.canceller.start(order)

    async with asyncio.timeout(30):
        await scene.canceller.drain(0.05)
