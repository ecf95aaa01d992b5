"""How an engine's steps reach the event loop, and when their frames leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from inferflux.workers.departures import Departures
from inferflux.workers.engine.job import Update
from inferflux.workers.handover import Handover, Step


def step(*requests: str, took_s: float = 0.0, finish_reason: Any = None) -> Step:
    updates = [
        Update(request=each, choice=0, index=0, tokens=(1,), text="x", finish_reason=finish_reason) for each in requests
    ]
    return Step(updates, took_s)


class Loop:
    """Counts who wakes it."""

    def __init__(self) -> None:
        self.num_wakes = 0

    def call_soon_threadsafe(self, _: Any) -> None:
        self.num_wakes += 1


class Reply:
    """An answer whose frames leave `interval_s` apart."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.num_pushed = 0
        self.frames: list[int] = []
        self.left = asyncio.Event()
        self._sent_s = -1e9

    def push(self, update: Update) -> None:
        self.num_pushed += 1
        if update.finish_reason is not None:
            self._sent_s = -1e9

    def due_s(self, interval_s: float) -> float:
        return self._sent_s + interval_s

    def flush(self) -> None:
        self._sent_s = asyncio.get_running_loop().time()
        self.frames.append(self.num_pushed)
        self.left.set()


class TestHandover:
    def setup_method(self) -> None:
        self.loop = Loop()
        self.handover = Handover(self.loop, lambda: None)  # type: ignore[arg-type]

    def test_wakes_for_each_step_that_nobody_comes_for(self) -> None:
        self.handover.put(step("a"))
        self.handover.put(step("a"))
        assert self.loop.num_wakes == 2
        assert len(list(self.handover.take())) == 2

    def test_while_the_loop_is_to_come_only_first_tokens_and_ends_wake_it(self) -> None:
        self.handover.put(step("a"))
        self.handover.expect()
        self.handover.put(step("a"))
        assert self.loop.num_wakes == 1
        self.handover.put(step("a", "b"))
        assert self.loop.num_wakes == 2
        self.handover.put(step("a", "b"))
        assert self.loop.num_wakes == 2
        self.handover.put(step("b", finish_reason="stop"))
        assert self.loop.num_wakes == 3

    def test_taking_ends_the_expectation(self) -> None:
        self.handover.put(step("a"))
        self.handover.expect()
        assert len(list(self.handover.take())) == 1
        self.handover.put(step("a"))
        assert self.loop.num_wakes == 2


class TestDepartures:
    """On a real loop, with steps from a real thread."""

    def setup_method(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.num_free = 0

    def take(self, taken: Step) -> Sequence[Any]:
        answers = []
        for update in taken.updates:
            answer = self.replies[update.request]
            answer.push(update)
            answers.append(answer)
        return answers

    def free(self) -> None:
        self.num_free += 1

    def departures(self, interval_s: float) -> Departures:
        return Departures(asyncio.get_running_loop(), interval_s, self.take, self.free)

    async def test_the_first_leaves_at_once_and_the_last_without_waiting_for_the_interval(self) -> None:
        departures, reply = self.departures(3600.0), Reply()
        self.replies["a"] = reply
        departures.put(step("a"))
        await reply.left.wait()
        assert reply.frames == [1]
        reply.left.clear()
        for _ in range(5):
            departures.put(step("a"))
        departures.put(step("a", finish_reason="stop"))
        reply.ended.set_result(None)
        await reply.left.wait()
        assert reply.frames == [1, 7]
        assert self.num_free == 1

    async def test_what_comes_within_an_interval_leaves_together_without_another_step(self) -> None:
        departures, reply = self.departures(0.02), Reply()
        self.replies["a"] = reply
        departures.put(step("a"))
        await reply.left.wait()
        reply.left.clear()
        for _ in range(5):
            departures.put(step("a"))
        await reply.left.wait()
        while sum(reply.frames[-1:]) < 6:
            reply.left.clear()
            await reply.left.wait()
        assert len(reply.frames) <= 3

    async def test_nothing_stays_behind_whenever_the_engine_puts(self) -> None:
        departures, reply = self.departures(0.0005), Reply()
        self.replies["a"] = reply
        num_steps = 2000

        def compute() -> None:
            for _ in range(num_steps):
                departures.put(step("a", took_s=0.0001))

        thread = threading.Thread(target=compute)
        thread.start()
        while reply.num_pushed < num_steps or reply.frames[-1:] != [num_steps]:
            reply.left.clear()
            await asyncio.wait_for(reply.left.wait(), 30)
        thread.join()
