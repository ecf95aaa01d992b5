"""What may go wrong between a worker and the broker, as scenarios that hold on the real system and fail on a mutant."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from harness.faults import Faults, Faulty
from harness.fleet import LEASE_S, PROMPT, Fleet, assert_exact, deadline, stub_text

from inferflux.api.cancel import Canceller, Order
from inferflux.api.relay import Relay
from inferflux.broker.errors import Code
from inferflux.broker.subjects import tenant_owner
from inferflux.broker.wire.requests import failure

Scenario = Callable[[Fleet], Awaitable[None]]
WHY = failure(Code.CANCELLED, "the client went away")


async def a_worker_dies_in_mid_answer(fleet: Fleet) -> None:
    first = await fleet.start_worker()
    request = await fleet.publish(40)
    await fleet.until_tokens(request, 10)
    first.faults.die()
    await fleet.start_worker()
    frames = await fleet.answer(request)
    assert_exact(frames, 40)
    assert len({frame.attempt for frame in frames}) == 2


async def a_worker_dies_before_its_terminal_frame(fleet: Fleet) -> None:
    first = await fleet.start_worker()
    first.faults.die_before("put_terminal")
    request = await fleet.publish(8)
    async with deadline(60, "the worker comes to its end"):
        await first.faults.dead.wait()
    await fleet.start_worker()
    assert_exact(await fleet.answer(request), 8)


async def a_worker_dies_between_terminal_frame_and_ack(fleet: Fleet) -> None:
    first = await fleet.start_worker()
    first.faults.die_before("ack")
    request = await fleet.publish(8)
    async with deadline(60, "the worker comes to its end"):
        await first.faults.dead.wait()
    before = await fleet.tape(request)
    await fleet.start_worker()
    assert await fleet.answer(request) == before
    assert_exact(before, 8)


async def a_zombie_ends_what_another_worker_has_taken_over(fleet: Fleet) -> None:
    zombie = await fleet.start_worker()
    gate = zombie.faults.gate("put_terminal")
    request = await fleet.publish(40)
    async with deadline(60, "the worker comes to its end"):
        await gate.reached.wait()
    zombie.faults.freeze()
    heir = await fleet.start_worker()
    ending = heir.faults.gate("put_terminal")
    async with deadline(60, "the request moves"):
        await ending.reached.wait()
    gate.opened.set()
    zombie.faults.thaw()
    async with deadline(60, "the zombie drops the work"):
        while zombie.worker.num_attempts:
            await asyncio.sleep(0.01)
    ending.opened.set()
    frames = await fleet.answer(request)
    assert_exact(frames, 40)
    assert frames[-1].attempt == max(frame.attempt for frame in frames)
    claimed = await fleet.client.last_claim(fleet.key(request))
    assert claimed is not None
    assert claimed[0] == frames[-1].attempt, "the terminal frame is not the last claim's"


async def an_engine_hangs(fleet: Fleet) -> None:
    first = await fleet.start_worker()
    request = await fleet.publish(40)
    await fleet.until_tokens(request, 5)
    first.backend.running.clear()
    await fleet.start_worker()
    assert_exact(await fleet.answer(request), 40)


async def an_answer_takes_longer_than_its_lease(fleet: Fleet) -> None:
    first = await fleet.start_worker()
    request = await fleet.publish(300, ignore_eos=True)
    await fleet.until_tokens(request, 2)
    # From now on the other worker takes what the lane has, and so would take a prompt whose lease has run out.
    first.faults.gate("pull")
    await fleet.start_worker()
    for _ in range(4):
        await asyncio.sleep(LEASE_S / 2)
        await fleet.publish(2)
    frames = await fleet.answer(request)
    assert len({frame.attempt for frame in frames}) == 1, "a worker that was at work lost its prompt"
    assert frames[-1].usage is not None


async def a_cancel_comes_while_a_worker_claims(fleet: Fleet) -> None:
    worker = await fleet.start_worker()
    gate = worker.faults.gate("put_claim")
    request = await fleet.publish(8)
    async with deadline(60, "the worker claims"):
        await gate.reached.wait()
    # The hint to the worker is lost, as a core message may be.
    await _cancel(fleet, request, hint=False)
    gate.opened.set()
    async with deadline(60, "the worker lets go"):
        while worker.worker.num_attempts:
            await asyncio.sleep(0.01)
    await _assert_cancelled(fleet, request)


async def a_cancel_comes_while_a_worker_ends(fleet: Fleet) -> None:
    worker = await fleet.start_worker()
    gate = worker.faults.gate("put_terminal")
    request = await fleet.publish(8)
    async with deadline(60, "the worker comes to its end"):
        await gate.reached.wait()
    await _cancel(fleet, request)
    gate.opened.set()
    async with deadline(60, "the worker lets go"):
        while worker.worker.num_attempts:
            await asyncio.sleep(0.01)
    await _assert_cancelled(fleet, request)


async def a_cancel_comes_after_the_end(fleet: Fleet) -> None:
    worker = await fleet.start_worker()
    gate = worker.faults.gate("ack")
    request = await fleet.publish(8)
    async with deadline(60, "the worker has ended the request"):
        await gate.reached.wait()
    await _cancel(fleet, request)
    gate.opened.set()
    assert_exact(await fleet.answer(request), 8)


async def a_request_is_handed_back_often(fleet: Fleet) -> None:
    request = await fleet.publish(150, ignore_eos=True)
    num_attempts = fleet.settings.queue.max_attempts + 2
    for number in range(1, num_attempts):
        worker = await fleet.start_worker()
        async with deadline(60, "the next worker goes on"):
            while len({frame.attempt for frame in await fleet.tape(request)}) < number:
                await asyncio.sleep(0.01)
        await worker.drain()
    await fleet.start_worker()
    frames = await fleet.answer(request)
    assert_exact(frames, 150)
    assert len({frame.attempt for frame in frames}) == num_attempts


async def a_tape_is_lost_and_the_next_worker_says_other_words(fleet: Fleet) -> None:
    relay = Relay(fleet.client, tenant_owner("acme"))
    await relay.start()
    try:
        first = await fleet.start_worker()
        request = await fleet.publish(40)
        stream = relay.open(fleet.key(request))
        await fleet.until_tokens(request, 10)
        first.faults.die()
        await fleet.client.purge_tape(fleet.key(request))
        await fleet.start_worker(shift=7)
        text, error = "", None
        async with deadline(60, "the stream ends"):
            while not stream.ended:
                for _, frame in await stream.read(time.monotonic() + 1):
                    text += frame.text
                    error = frame.error or error
    finally:
        await relay.close()
    whole = stub_text(PROMPT, 40)
    if error is None:
        assert text in (whole, stub_text(PROMPT, 40, shift=7)), "two answers were spliced"
    else:
        assert error.code == Code.STREAM_DIVERGED
        assert whole.startswith(text), "words of another answer were passed on"


async def _cancel(fleet: Fleet, request: str, *, hint: bool = True) -> None:
    """As the API does when its client has gone."""
    faults = Faults()
    if not hint:
        faults.drop("send_cancel")
    broker: Any = Faulty(fleet.client, faults)
    canceller = Canceller(broker, "test", fleet.settings.tape.window_s)
    async with deadline(60, "the cancel"):
        assert await canceller.cancel(Order(fleet.key(request), None, WHY))
    await canceller.drain(1.0)


async def _assert_cancelled(fleet: Fleet, request: str) -> None:
    frames = await fleet.answer(request)
    assert [frame.error.code for frame in frames if frame.error] == [Code.CANCELLED]
    assert sum(frame.terminal for frame in frames) == 1


SCENARIOS: tuple[Scenario, ...] = (
    a_worker_dies_in_mid_answer,
    a_worker_dies_before_its_terminal_frame,
    a_worker_dies_between_terminal_frame_and_ack,
    a_zombie_ends_what_another_worker_has_taken_over,
    an_engine_hangs,
    an_answer_takes_longer_than_its_lease,
    a_cancel_comes_while_a_worker_claims,
    a_cancel_comes_while_a_worker_ends,
    a_cancel_comes_after_the_end,
    a_request_is_handed_back_often,
    a_tape_is_lost_and_the_next_worker_says_other_words,
)
