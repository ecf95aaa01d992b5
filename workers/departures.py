"""Departures: when what an engine has computed leaves as frames."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from .answer import Answer
from .handover import Handover, Step


class Departures:
    """Lives on the event loop, `put` aside. `take` gives a step's updates to their answers and returns those; each
    leaves when it is due. `on_free` is called when one has ended.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        frame_interval_s: float,
        take: Callable[[Step], Sequence[Answer]],
        on_free: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._frame_interval_s = frame_interval_s
        self._take = take
        self._on_free = on_free
        self._handover = Handover(loop, self._arrived)
        self._touched: dict[Answer, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._step_s = 0.0

    def put(self, step: Step) -> None:
        """What the engine has computed; on its thread."""
        self._handover.put(step)

    def _arrived(self) -> None:
        """Frames leave in the loop's next turn at the earliest: steps that piled up while it was busy leave as one
        frame each."""
        self._collect()
        if self._touched:
            self._leave_at(self._due_s())

    def _collect(self) -> bool:
        """Take the steps that are there. False when there is none."""
        came = False
        for step in self._handover.take():
            came = True
            self._step_s = step.took_s
            self._touched |= dict.fromkeys(self._take(step))
        return came

    def _due_s(self) -> float:
        return min(answer.due_s(self._frame_interval_s) for answer in self._touched)

    def _leave_at(self, due_s: float) -> None:
        """Then, or earlier."""
        self._handover.expect()
        if self._timer is not None:
            if self._timer_s <= due_s:
                return
            self._timer.cancel()
        self._timer_s = due_s
        self._timer = self._loop.call_later(max(0.0, due_s - time.monotonic()), self._leave)

    def _leave(self) -> None:
        self._timer = None
        came = self._collect()
        now_s = time.monotonic()
        due = [answer for answer in self._touched if answer.due_s(self._frame_interval_s) <= now_s]
        for answer in due:
            del self._touched[answer]
            answer.flush()
        if self._touched:
            self._leave_at(self._due_s())
        elif came and self._step_s < self._frame_interval_s:
            # By the time that the next frame may leave there will be something for it.
            self._leave_at(now_s + self._frame_interval_s)
        if any(answer.ended.done() for answer in due):
            self._on_free()
