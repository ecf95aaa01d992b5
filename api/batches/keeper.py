"""The keeper: takes batches that nobody works on, its own and those of replicas that are gone, and runs them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import cast

import msgspec

from inferflux.broker.broker import Entry
from inferflux.broker.errors import BrokerError, BrokerUnavailable, RevisionConflict
from inferflux.broker.subjects import BATCH, parse_batch_key
from inferflux.broker.wire.batches import Batch, BatchStatus
from inferflux.config.logs import get_logger

from .agenda import Agenda
from .held import HeldBatch
from .records import Kept, decode_batch
from .runner import Runner
from .services import RETRY_S, Services
from .submissions import Submissions

log = get_logger("api.batches")

LOOK_S = 0.5
RELEASE_S = 5.0
UNFINISHED: tuple[BatchStatus, ...] = ("validating", "in_progress", "finalizing", "cancelling")


class Keeper:
    """Every API replica has one; `replica` is its name as an owner."""

    def __init__(self, services: Services, replica: str, submissions: Submissions) -> None:
        settings = services.settings.batches
        self.agenda = Agenda(settings.lease_s, settings.max_running)
        self._services = services
        self._replica = replica
        self._submissions = submissions
        self._runners: dict[tuple[str, str], Runner] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._loops = [
            asyncio.create_task(self._watch(), name="batches"),
            asyncio.create_task(self._take_all(), name="batch leases"),
        ]

    async def close(self) -> None:
        """Hand every batch back; the lines in flight go on, and whoever takes it over joins them."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for runner in self._runners.values():
            runner.stop("released")
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=RELEASE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                bucket = await self._services.records.bucket()
                async with contextlib.aclosing(cast("AsyncGenerator[Entry | None]", bucket.watch())) as entries:
                    async for entry in entries:
                        if entry is not None:
                            self._hear(entry)
            except BrokerUnavailable as error:
                log.warning("batches not watched", reason=str(error))
            await asyncio.sleep(RETRY_S)

    def _hear(self, entry: Entry) -> None:
        try:
            kind, tenant, ident = parse_batch_key(entry.key)
            if kind != BATCH:
                if entry.value is not None:
                    self._submissions.hear(tenant, ident, entry)
            elif entry.value is None:
                self.agenda.forget(tenant, ident)
                self._stop(tenant, ident, "lost")
            else:
                self._heard(Kept(decode_batch(entry.value), entry.revision))
        except (ValueError, msgspec.DecodeError) as error:
            log.warning("batch entry not understood", key=entry.key, reason=str(error))
        self._changed.set()

    def _heard(self, kept: Kept) -> None:
        batch = kept.batch
        self.agenda.hear(kept, time.monotonic())
        if batch.owner == self._replica and batch.status == "cancelling":
            self._stop(batch.tenant, batch.id, "cancelled")

    def _stop(self, tenant: str, ident: str, why: str) -> None:
        runner = self._runners.get((tenant, ident))
        if runner is not None:
            runner.stop("cancelled" if why == "cancelled" else "lost")

    async def _take_all(self) -> None:
        connected = True
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            self._changed.clear()
            was_connected, connected = connected, self._services.broker.connected
            if not (connected and was_connected):
                self.agenda.start_over(time.monotonic())
                continue
            try:
                for kept in self.agenda.due(time.monotonic()):
                    await self._take(kept)
            except BrokerError as error:
                log.warning("batch not taken", reason=str(error))
            self._count()

    async def _take(self, kept: Kept) -> None:
        batch = kept.batch
        if (batch.tenant, batch.id) in self._runners:
            return
        taken_over = batch.owner is not None
        try:
            mine = await self._services.records.replace(kept, msgspec.structs.replace(batch, owner=self._replica))
        except RevisionConflict:
            return  # another replica was faster, or it was cancelled: the watch will tell
        self.agenda.hear(mine, time.monotonic())
        if taken_over:
            self._services.metrics.batch_takeovers.inc()
        log.info("batch taken", batch=batch.id, tenant=batch.tenant, status=batch.status, from_=batch.owner)
        runner = Runner(self._services, HeldBatch(self._services.records, mine))
        self._runners[batch.tenant, batch.id] = runner
        task = asyncio.create_task(self._run(runner, batch), name=f"batch {batch.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, runner: Runner, batch: Batch) -> None:
        try:
            await runner.run()
        except Exception as error:
            # The entry stays as it is, so that it is taken again when the lease is over, here or elsewhere.
            log.error("batch runner failed", error=error, batch=batch.id)
        finally:
            del self._runners[batch.tenant, batch.id]
            self._changed.set()

    def _count(self) -> None:
        metrics = self._services.metrics
        metrics.batches_running.set(len(self._runners))
        counts = Counter(batch.status for batch in self.agenda.batches())
        for status in UNFINISHED:
            metrics.batches.labels(status).set(counts[status])
