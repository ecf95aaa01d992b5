"""Overdue: which stored prompts nobody will start any more, and which lanes are worth a look. Pure; Unix times."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import msgspec

from inferflux.broker.errors import Code
from inferflux.broker.subjects import Lane
from inferflux.broker.wire.requests import Claim, Failure, failure
from inferflux.config.settings import QueueSettings

from .admission import no_backend

MARGIN_S = 2.0
"""Workers end late prompts themselves when they pull them; this leaves it to them while there are any."""

ORPHAN_S = 10.0
"""After this time whoever wrote a cancelling claim, and no terminal frame, has died over it."""

LOOK_S = 30.0


class Case(msgspec.Struct, frozen=True):
    """What is known of a stored prompt: its lane's model, when it was stored, its deadline, and its newest claim.

    `alive` is whether the worker of that claim still is, `batch` whether it is work that nobody waits for.
    """

    model: str
    stored_s: float
    deadline_s: float | None = None
    claim: Claim | None = None
    alive: bool = False
    batch: bool = False

    @property
    def patient_until_s(self) -> float:
        """Until when it waits for a worker of its model, however long there has been none: batch work, its deadline."""
        if not self.batch:
            return self.stored_s
        return math.inf if self.deadline_s is None else self.deadline_s


def verdict(case: Case, *, now_s: float, absent_s: float, settings: QueueSettings) -> Failure | None:
    """How the prompt ends now; None while it may still run. `absent_s` is how long its model has had no worker."""
    state = "released" if case.claim is None else case.claim.state
    grace_s = settings.no_backend_grace_s
    if state == "cancelled":
        assert case.claim is not None
        return failure(Code.CANCELLED, "the request was cancelled") if now_s > case.claim.at + ORPHAN_S else None
    if state == "running":
        # Whoever holds it may only have been cut off: a lease more than for what nobody has begun.
        if case.alive:
            return None
        grace_s += settings.lease_s
    elif case.deadline_s is not None and now_s > case.deadline_s + MARGIN_S:
        return failure(Code.QUEUE_TIMEOUT, "the request waited longer than its deadline allows")
    if now_s < case.patient_until_s:
        return None
    why = no_backend(case.model, waited_s=now_s - case.stored_s, absent_s=absent_s, grace_s=grace_s)
    if why is not None and _exhausted(case, settings.max_attempts):
        return failure(
            Code.ATTEMPTS_EXHAUSTED,
            f"{settings.max_attempts} workers were lost while they worked on this request; it is given up",
        )
    return why


def _exhausted(case: Case, max_attempts: int) -> bool:
    """Whether it may be this prompt that took the last workers along."""
    claim = case.claim
    return claim is not None and claim.state == "running" and claim.num_attempts >= max_attempts


class Agenda:
    """When each lane is to be looked at again.

    Lanes are mostly in order of deadline, so the first prompt that may still run speaks for all behind it: nothing in
    its lane is due before it is, or before its model has been without a worker for the grace.
    """

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        self._due_s: dict[Lane, float] = {}
        self._absent_due_s: dict[Lane, float] = {}
        self._after_seq: dict[Lane, int] = {}

    def due(self, lanes: Collection[Lane], now_s: float, absent_s: Callable[[str], float]) -> list[Lane]:
        """Those of the lanes that are worth a look, the longest due first."""
        for lane in self._due_s.keys() - lanes:
            self._due_s.pop(lane)
            self._absent_due_s.pop(lane, None)
            self._after_seq.pop(lane, None)
        found = []
        for lane in lanes:
            due_s = self._due_s.get(lane, 0.0)
            if absent_s(lane.model) >= self._settings.no_backend_grace_s:
                due_s = min(due_s, self._absent_due_s.get(lane, 0.0))
            if due_s <= now_s:
                found.append((due_s, lane))
        return [lane for _, lane in sorted(found)]

    def after_seq(self, lane: Lane) -> int:
        """Where the last look at this lane stopped halfway; 0 when it came to its end."""
        return self._after_seq.get(lane, 0)

    def stopped(self, lane: Lane, after_seq: int, now_s: float) -> None:
        """A look ended after this prompt, for want of time."""
        self._due_s[lane] = now_s
        self._after_seq[lane] = after_seq

    def looked(self, lane: Lane, first: Case | None, now_s: float) -> None:
        """A look ended at the first prompt that may still be started; None where all of them run."""
        self._after_seq.pop(lane, None)
        self._due_s[lane] = now_s + LOOK_S
        self._absent_due_s[lane] = 0.0
        if first is not None:
            self._absent_due_s[lane] = max(first.stored_s + self._settings.no_backend_grace_s, first.patient_until_s)
            if first.deadline_s is not None:
                self._due_s[lane] = min(self._due_s[lane], first.deadline_s + MARGIN_S)
