"""The work: a batch's lines, a window of them in flight at a time, written down as they are answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec

from inferflux.broker.errors import BrokerError, Code
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass, api_owner
from inferflux.broker.wire.batches import Batch, BatchEntry
from inferflux.broker.wire.requests import Failure, Usage, failure
from inferflux.config.logs import get_logger
from inferflux.registry.models import ModelEntry

from ..cancel import Order
from ..problems import http_error, problem
from ..relay import Relay
from .asker import Asker, Outcome
from .identity import request_name, token
from .journal import Journal
from .results import Record, Response
from .services import Services, insist
from .source import Source
from .splitter import Line
from .tally import Tally
from .task import LineError, custom_id_of, read_task
from .window import Window

log = get_logger("api.batches")

GATHER_S = 0.1
"""How long answers wait for others to be written down with them."""

MAX_UNSAVED = 512
END_S = 10.0
"""How long lines that were cancelled may take to say so."""

CANCEL_WIDTH = 32


class Work:
    """`run` returns when every line is answered, or soon after it was stopped; what was answered is written down."""

    def __init__(self, services: Services, batch: Batch, model: ModelEntry, journal: Journal, tally: Tally) -> None:
        self._services = services
        self._batch = batch
        self._model = model
        self._journal = journal
        self._tally = tally
        self._lane = Lane(model.id, ServiceClass.BATCH, batch.tenant)
        self._relay = Relay(services.broker, api_owner(token(batch)))
        self._asker = Asker(services, self._relay, batch, self._lane)
        self._window = Window(self._width())
        self._running: set[asyncio.Task[None]] = set()
        self._unsaved: list[tuple[BatchEntry, RequestKey]] = []
        self._due = asyncio.Event()
        self._saved = asyncio.Event()
        self._stopping = False
        self._num_known = 0

    async def run(self, source: Source, stopped: asyncio.Event, why: Callable[[], str | None], *, begun: bool) -> None:
        """`begun` is a batch that another replica has worked on: it may have asked for any of the next lines."""
        self._num_known = 2 * self._services.settings.batches.max_in_flight if begun else 0
        await insist(self._relay.start)
        saving = asyncio.create_task(self._save_all(), name=f"journal of {self._batch.id}")
        starting = asyncio.create_task(self._start_all(source), name=f"lines of {self._batch.id}")
        stop = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({starting, saving, stop}, return_when=asyncio.FIRST_COMPLETED)
            if saving.done():
                saving.result()
            if stop.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                await self._end(why())
            else:
                starting.result()
        finally:
            for task in (saving, starting, stop, *self._running):
                task.cancel()
            await asyncio.gather(saving, starting, stop, *self._running, return_exceptions=True)
            await self._relay.close()
        if why() != "lost":
            await self._save()

    def _width(self) -> int:
        width = self._services.settings.batches.max_in_flight
        bound = self._services.tenants.tenant(self._batch.tenant).max_queued
        # What else the tenant asks for must find room beside its batch.
        return width if bound is None else max(1, min(width, bound // 2))

    async def _start_all(self, source: Source) -> None:
        async for line in source.lines():
            if self._tally.has(line.number):
                continue
            size = len(line.body or b"")
            await self._window.enter(size)
            while len(self._unsaved) >= MAX_UNSAVED:
                self._saved.clear()
                await self._saved.wait()
            known = self._num_known > 0
            self._num_known -= 1
            task = asyncio.create_task(self._answer(line, size, known=known))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        while self._running:
            await asyncio.wait(self._running)

    async def _answer(self, line: Line, size: int, *, known: bool) -> None:
        running = self._services.metrics.batch_lines_running
        running.inc()
        try:
            outcome, custom_id = await self._outcome(line, known=known)
        finally:
            running.dec()
            self._window.leave(size)
        if outcome is None:
            return
        failed = outcome.status >= 400
        self._services.metrics.batch_lines.labels(self._model.id, "failed" if failed else "completed").inc()
        record = Record(
            id=request_name(self._batch, line.number),
            custom_id=custom_id,
            response=Response(outcome.status, outcome.key.request, msgspec.Raw(outcome.body)),
        )
        raw = msgspec.Raw(msgspec.json.encode(record))
        entry = BatchEntry(line=line.number, failed=failed, record=raw, usage=outcome.usage)
        self._unsaved.append((entry, outcome.key))
        self._due.set()

    async def _outcome(self, line: Line, *, known: bool) -> tuple[Outcome | None, str]:
        try:
            task = read_task(line, self._batch.endpoint, self._services.settings.server.max_body_bytes)
        except LineError as error:  # the file is not what was looked through
            why = failure(Code.INVALID_REQUEST, error.message, param=error.param)
            return self._error(line, why), custom_id_of(line) or ""
        try:
            outcome = await self._asker.ask(task, self._model, known=known)
        except Exception as error:
            log.error("batch line failed", error=error, batch=self._batch.id, line=line.number)
            why = failure(Code.INTERNAL_ERROR, "the server failed to handle this line")
            return self._error(line, why), task.custom_id
        if len(outcome.body) > self._services.settings.server.max_body_bytes:
            why = failure(Code.REQUEST_TOO_LARGE, "the answer is larger than this server can keep")
            return self._error(line, why), task.custom_id
        cancelled = outcome.status == http_error(Code.CANCELLED).status
        return None if cancelled and self._stopping else outcome, task.custom_id

    def _error(self, line: Line, why: Failure) -> Outcome:
        key = RequestKey(api_owner(token(self._batch)), request_name(self._batch, line.number))
        return Outcome(http_error(why.code).status, msgspec.json.encode(problem(why)), Usage(), key)

    async def _end(self, why: str | None) -> None:
        """Cancel what is in flight, unless others go on with it; what is answered meanwhile is kept."""
        self._stopping = True
        if why not in ("cancelled", "expired"):
            return
        reason = failure(Code.CANCELLED, f"the batch was {why}")
        orders = [Order(key, seq, reason) for key, seq in self._asker.open.items()]
        room = asyncio.Semaphore(CANCEL_WIDTH)

        async def cancel(order: Order) -> None:
            async with room:
                with contextlib.suppress(BrokerError):
                    await self._services.canceller.cancel(order)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await asyncio.gather(*map(cancel, orders))
                while self._running:
                    await asyncio.wait(self._running)

    async def _save_all(self) -> None:
        while True:
            await self._due.wait()
            await asyncio.sleep(GATHER_S)
            self._due.clear()
            await self._save()

    async def _save(self) -> None:
        unsaved = self._unsaved.copy()
        if not unsaved:
            return
        entries = [entry for entry, _ in unsaved]
        await insist(lambda: self._journal.append(entries, lambda entry: not self._tally.has(entry.line)))
        del self._unsaved[: len(unsaved)]
        self._saved.set()
        await self._asker.forget([key for _, key in unsaved])
