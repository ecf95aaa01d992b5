"""The runner: one batch on this replica, from validation to its result files.

Whatever dies, each line is in one of the files once: an answer counts when it is in the journal, and the journal lets
nobody add a line twice. What was answered but not written down when a replica died is still on the tape, or is asked
again; either way under the id that the line had.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Literal

import msgspec

from inferflux.broker.errors import BrokerError, BrokerUnavailable, ObjectDamaged
from inferflux.broker.wire.batches import Batch, BatchEnding, BatchEntry, LineProblem
from inferflux.config.logs import get_logger

from .held import HeldBatch, LeaseLost
from .identity import journal_of
from .inspection import Inspection
from .journal import Journal
from .records import OVER
from .results import Results
from .services import RETRY_S, Services, insist
from .source import Source
from .tally import Tally
from .task import custom_id_of
from .validation import Validation
from .work import Work

log = get_logger("api.batches")

BEATS_PER_LEASE = 8
MAX_BEAT_S = 1.0
Stop = Literal["cancelled", "expired", "released", "lost"]


class Runner:
    """`run` it until it returns: then the batch has ended, or is another replica's."""

    def __init__(self, services: Services, held: HeldBatch) -> None:
        self._services = services
        self._held = held
        self._source = Source(services.objects, held.batch, services.settings.server.max_body_bytes)
        self._tally = Tally(held.batch.counts.total)
        self._journal = Journal(services.objects.chunks, journal_of(held.batch), self._tally.add)
        self._begun = True
        self._why: Stop | None = None
        self._stopped = asyncio.Event()

    @property
    def batch(self) -> Batch:
        return self._held.batch

    def stop(self, why: Stop) -> None:
        """Stop working on lines; the first reason stands, unless the batch is out of our hands."""
        if self._why is None or why in ("released", "lost"):
            self._why = why
        self._stopped.set()

    async def run(self) -> None:
        beating = asyncio.create_task(self._beat(), name=f"lease of {self.batch.id}")
        timer = asyncio.get_running_loop().call_later(max(0.0, self.batch.expires - time.time()), self.stop, "expired")
        if self.batch.status == "cancelling":
            self.stop("cancelled")
        try:
            await self._advance()
            if self._why == "released" and self.batch.status not in OVER:
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)
                await self._change(owner=None)
        except LeaseLost:
            log.info("batch is another replica's now", batch=self.batch.id)
        finally:
            timer.cancel()
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _advance(self) -> None:
        if self.batch.status == "validating":
            validation = await Inspection(self._services, self.batch, self._source).run(self._stopped)
            if validation is not None:
                await self._validated(validation)
        if self.batch.status == "failed" or self._why in ("released", "lost"):
            return
        if self.batch.num_parts is None:
            await self._work()
        if self._why in ("released", "lost"):
            return
        await self._finish()

    async def _validated(self, validation: Validation) -> None:
        now_s = time.time()
        num_lines = min(validation.num_lines, self._services.settings.batches.max_lines)
        if validation.num_problems:
            await self._change(
                status="failed",
                ended=now_s,
                problems=tuple(validation.problems),
                num_problems=validation.num_problems,
            )
            log.info("batch refused", batch=self.batch.id, num_problems=validation.num_problems)
            return
        self._begun = False
        self._tally.total = num_lines
        counts = self._tally.counts

        def begin(batch: Batch) -> Batch:
            status = "in_progress" if batch.status == "validating" else batch.status
            return msgspec.structs.replace(
                batch, status=status, model=validation.model, counts=counts, started=batch.started or now_s
            )

        await insist(lambda: self._held.change(begin))
        log.info("batch begun", batch=self.batch.id, num_lines=num_lines, model=validation.model)

    async def _work(self) -> None:
        await insist(self._journal.replay)
        if self._why is not None or self._tally.complete:
            return
        model = self._services.models.resolve(self.batch.model)
        if model is None:
            await self._give_up(f"The model {self.batch.model!r} does not exist any more.")
            return
        work = Work(self._services, self.batch, model, self._journal, self._tally)
        try:
            await work.run(self._source, self._stopped, lambda: self._why, begun=self._begun)
        except ObjectDamaged as error:
            await self._give_up(f"The input file cannot be read any more: {error}.")

    async def _give_up(self, message: str) -> None:
        """End a batch that cannot go on as cancelled, with what it has."""
        log.warning("batch given up", batch=self.batch.id, reason=message)
        await self._change(problems=(LineProblem(code="cannot_go_on", message=message),), num_problems=1)
        self.stop("cancelled")

    async def _finish(self) -> None:
        ending: BatchEnding = self._ending()
        if self.batch.num_parts is None:
            await insist(self._journal.replay)
            num_parts, now_s = self._journal.num_parts, time.time()

            def settle(batch: Batch) -> Batch:
                cancelled = batch.status == "cancelling"
                return msgspec.structs.replace(
                    batch,
                    status="cancelling" if cancelled else "finalizing",
                    ending="cancelled" if cancelled else ending,
                    num_parts=num_parts,
                    finalizing=now_s,
                )

            await insist(lambda: self._held.change(settle))
        while True:
            try:
                await self._write_results()
                return
            except BrokerUnavailable:
                await asyncio.sleep(RETRY_S)
            except ObjectDamaged as error:
                problem = LineProblem(code="results_lost", message=f"The results cannot be written: {error}.")
                await self._change(status="failed", ended=time.time(), problems=(problem,), num_problems=1)
                return

    def _ending(self) -> BatchEnding:
        if self.batch.ending is not None:
            return self.batch.ending
        if self._tally.complete and self._tally.total:
            return "completed"
        return "expired" if self._why == "expired" else "cancelled"

    async def _write_results(self) -> None:
        num_parts, ending = self.batch.num_parts, self.batch.ending
        assert num_parts is not None
        assert ending is not None
        final = Tally(self.batch.counts.total)
        retention_s = self.batch.output_retention_s or self._services.files.retention_s(self.batch.tenant)
        results = Results(self._services.objects, self.batch, retention_s)
        output, errors = await results.write(
            self._counted(num_parts, final), self._undone(final) if ending == "expired" else _nothing()
        )
        await self._change(
            status=ending,
            ended=time.time(),
            counts=final.counts,
            usage=final.usage,
            output_file=None if output is None else output.name.partition(".")[2],
            output_chunks=0 if output is None else output.chunks,
            error_file=None if errors is None else errors.name.partition(".")[2],
            error_chunks=0 if errors is None else errors.chunks,
        )
        await insist(self._journal.purge)
        log.info("batch ended", batch=self.batch.id, status=ending, completed=final.counts.completed)

    async def _counted(self, num_parts: int, tally: Tally) -> AsyncIterator[BatchEntry]:
        async for entry in self._journal.entries(num_parts):
            tally.add(entry)
            yield entry

    async def _undone(self, tally: Tally) -> AsyncIterator[tuple[int, str]]:
        async for line in self._source.lines():
            if not tally.has(line.number):
                yield line.number, custom_id_of(line) or ""

    async def _change(self, **fields: object) -> None:
        await insist(lambda: self._held.change(partial(_replaced, fields=fields)))

    async def _beat(self) -> None:
        """Renews the lease, tells how far the work is, and hears of a cancel that came with no other word."""
        interval_s = min(MAX_BEAT_S, self._services.settings.batches.lease_s / BEATS_PER_LEASE)
        while True:
            await asyncio.sleep(interval_s)
            try:
                batch = await self._held.change(self._progress)
            except LeaseLost:
                self.stop("lost")
                return
            except BrokerError:
                continue
            if batch.status == "cancelling":
                self.stop("cancelled")

    def _progress(self, batch: Batch) -> Batch:
        if batch.status != "in_progress":
            return batch
        return msgspec.structs.replace(batch, counts=self._tally.counts, usage=self._tally.usage)


def _replaced(batch: Batch, fields: dict[str, object]) -> Batch:
    return msgspec.structs.replace(batch, **fields)


async def _nothing() -> AsyncIterator[tuple[int, str]]:
    return
    yield
