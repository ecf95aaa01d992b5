"""A batch that this replica holds: its entry is changed by nobody else but those who cancel it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from inferflux.broker.errors import RevisionConflict
from inferflux.broker.wire.batches import Batch

from .records import OVER, BatchRecords, Kept


class LeaseLost(Exception):
    """Another replica has taken the batch over, or it has ended, or it was deleted."""


class HeldBatch:
    """Every change is a renewal of the lease. Changes must be of a kind that can be made again on a newer entry."""

    def __init__(self, records: BatchRecords, kept: Kept) -> None:
        self._records = records
        self._kept = kept
        self._owner = kept.batch.owner
        self._lock = asyncio.Lock()

    @property
    def batch(self) -> Batch:
        return self._kept.batch

    async def change(self, change: Callable[[Batch], Batch]) -> Batch:
        """Raises LeaseLost, BrokerError."""
        async with self._lock:
            while True:
                try:
                    self._kept = await self._records.replace(self._kept, change(self._kept.batch))
                except RevisionConflict:
                    await self._look()
                else:
                    return self._kept.batch

    async def _look(self) -> None:
        kept = await self._records.get(self.batch.tenant, self.batch.id)
        if kept is None or kept.batch.owner != self._owner or kept.batch.status in OVER:
            raise LeaseLost
        self._kept = kept
