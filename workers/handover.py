"""The handover: an engine's steps on their way from its thread to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .engine.job import Update


class Step(NamedTuple):
    """What one step gave, and how many seconds it took."""

    updates: list[Update]
    took_s: float


class Handover:
    """One thread puts, the loop takes.

    `on_step` runs on the loop. Waking the loop makes two threads change places on cores that the engine computes on;
    so while the loop is to come by itself, it is woken for first tokens and ends only.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_step: Callable[[], None]) -> None:
        self._loop = loop
        self._on_step = on_step
        self._steps: deque[Step] = deque()
        self._spoke: set[str] = set()
        self._is_expected = False

    def put(self, step: Step) -> None:
        """Called on the engine's thread."""
        requests = {update.request for update in step.updates}
        begins = not requests <= self._spoke
        ends = any(update.finish_reason is not None or update.error is not None for update in step.updates)
        self._spoke = requests
        self._steps.append(step)
        # Read after the step was put, as `take` clears it before it takes: whichever comes first, nothing stays behind.
        if begins or ends or not self._is_expected:
            self._loop.call_soon_threadsafe(self._on_step)

    def expect(self) -> None:
        """The loop will `take` soon, woken or not."""
        self._is_expected = True

    def take(self) -> Iterator[Step]:
        """All there is, one by one."""
        self._is_expected = False
        while self._steps:
            yield self._steps.popleft()
