"""The agenda: every batch that has not ended, and which of them this replica should take next. Pure."""

from __future__ import annotations

from collections import Counter

import msgspec

from inferflux.broker.wire.batches import Batch

from .records import OVER, Kept


class _Heard(msgspec.Struct):
    kept: Kept
    since_s: float


class Agenda:
    """An owner writes its batch's entry again and again; one that stays as it is for a lease has no owner any more.

    That is told by this replica's own clock, from what it hears, so that clocks need not agree.
    """

    def __init__(self, lease_s: float, max_running: int) -> None:
        self._lease_s = lease_s
        self._max_running = max_running
        self._heard: dict[tuple[str, str], _Heard] = {}

    def hear(self, kept: Kept, now_s: float) -> None:
        """An entry as it stands now."""
        batch = kept.batch
        if batch.status in OVER:
            self.forget(batch.tenant, batch.id)
            return
        known = self._heard.get((batch.tenant, batch.id))
        if known is None or known.kept.revision < kept.revision:
            self._heard[batch.tenant, batch.id] = _Heard(kept, now_s)

    def forget(self, tenant: str, ident: str) -> None:
        self._heard.pop((tenant, ident), None)

    def start_over(self, now_s: float) -> None:
        """Give every owner a lease from now: nothing could be heard for a while."""
        for heard in self._heard.values():
            heard.since_s = now_s

    def batches(self) -> list[Batch]:
        return [heard.kept.batch for heard in self._heard.values()]

    def due(self, now_s: float) -> list[Kept]:
        """Batches without an owner that may be worked on, oldest first. Those that only have to be brought to their end
        are not counted against the tenant's bound."""
        running: Counter[str] = Counter()
        waiting: list[Kept] = []
        for heard in self._heard.values():
            batch = heard.kept.batch
            if batch.owner is not None and now_s - heard.since_s < self._lease_s:
                running[batch.tenant] += 1
            else:
                waiting.append(heard.kept)
        chosen: list[Kept] = []
        for kept in sorted(waiting, key=lambda each: (each.batch.started is None, each.batch.created, each.batch.id)):
            batch = kept.batch
            ending = batch.status in ("cancelling", "finalizing")
            if not ending and running[batch.tenant] >= self._max_running:
                continue
            running[batch.tenant] += not ending
            chosen.append(kept)
        return chosen
