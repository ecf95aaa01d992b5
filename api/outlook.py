"""The outlook: a waiting request's place in its queue, and how long that may last. Pure.

The stream tells how many prompts each lane holds, heartbeats how many run, and this replica knows when answers end.
The rest is inferred: lanes are served in turn, so a prompt starts after those before it in its own lane and after as
many of every other lane that waits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import NamedTuple

from inferflux.broker.subjects import Lane, ServiceClass

MIN_RETRY_S = 1.0
MAX_RETRY_S = 600.0
RATE_WINDOW_S = 60.0
MAX_ENDS = 512

_RANK = {service_class: rank for rank, service_class in enumerate(ServiceClass)}


class Outlook(NamedTuple):
    """`position` counts from 1 within the lane; `wait_s` is None where no rate was measured yet."""

    position: int
    wait_s: float | None


class DrainRate:
    """How many prompts of one model end in a second, over the last minute at most."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=MAX_ENDS)

    def ended(self, now_s: float) -> None:
        self._ends.append(now_s)

    def per_s(self, now_s: float) -> float | None:
        """None until two have ended."""
        ends = self._ends
        while ends and now_s - ends[0] > RATE_WINDOW_S:
            ends.popleft()
        if len(ends) < 2 or now_s <= ends[0]:
            return None
        return (len(ends) - 1) / (now_s - ends[0])


class ModelQueue:
    """One model's lanes as of one look: how many prompts each holds, and how many of all of them run."""

    def __init__(self, depths: Mapping[Lane, int], num_running: int) -> None:
        self._running: dict[Lane, int] = {}
        waiting: dict[ServiceClass, list[int]] = {each: [] for each in ServiceClass}
        left = num_running
        for number, (lane, depth) in enumerate(sorted(depths.items(), key=lambda item: item[1])):
            # Slots go to lanes in turn: no lane has more than its part, but for what smaller ones leave.
            running = self._running[lane] = min(depth, left // (len(depths) - number))
            left -= running
            waiting[lane.service_class].append(depth - running)
        self._waiting = {each: sorted(counts) for each, counts in waiting.items()}
        self._sums = {each: [0, *accumulate(counts)] for each, counts in self._waiting.items()}

    @property
    def num_lanes(self) -> int:
        """Lanes in which something waits."""
        return sum(len(counts) - bisect_right(counts, 0) for counts in self._waiting.values())

    def position(self, lane: Lane, num_ahead: int) -> int:
        """The place, from 1, among those of a lane that wait, with so many stored before it."""
        return 1 + max(0, num_ahead - self._running.get(lane, 0))

    def num_before(self, lane: Lane, position: int) -> int:
        """Prompts that start before this one, itself included, when lanes take turns and classes go by rank."""
        counts, sums = self._waiting[lane.service_class], self._sums[lane.service_class]
        shorter = bisect_right(counts, position)
        before = max(position, sums[shorter] + (len(counts) - shorter) * position)
        higher = (each for each in ServiceClass if _RANK[each] < _RANK[lane.service_class])
        return before + sum(self._sums[each][-1] for each in higher)


class Place:
    """One prompt's place in its lane. `look` brings the outlook up to date; it never gets worse by what comes later."""

    def __init__(self, num_ahead: int, look: Callable[[Place], Outlook]) -> None:
        self.num_ahead = num_ahead
        self._look = look

    def outlook(self) -> Outlook:
        return self._look(self)


def retry_after_s(queue: ModelQueue, rate: float | None) -> float:
    """When a prompt that was refused may find room: once each waiting lane has had a turn."""
    if not rate:
        return MIN_RETRY_S
    return min(MAX_RETRY_S, max(MIN_RETRY_S, max(1, queue.num_lanes) / rate))
