"""The exchange: one accepted request and its answer, to whatever end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from inferflux.broker.errors import Code
from inferflux.broker.subjects import Lane, RequestKey
from inferflux.broker.wire import Failure, Frame, failure
from inferflux.config.logs import get_logger
from inferflux.registry.models import ModelEntry

from .cancel import Canceller, Order
from .meter import Meter
from .patience import Patience
from .replies import ReplyStream, TapeFrame

log = get_logger("api")

PATIENCE_INTERVAL_S = 1.0
GONE = failure(Code.CANCELLED, "the client went away")


class ClientGone(Exception):
    """Nobody is left to answer."""


class Ticket(msgspec.Struct, frozen=True):
    """A stored prompt. `created_s` is Unix time, `accepted_s` the monotonic clock's."""

    key: RequestKey
    lane: Lane
    model: ModelEntry
    prompt_seq: int
    created_s: float
    accepted_s: float


class Exchange:
    """Read it to the end, then close it; closing it earlier cancels the request."""

    def __init__(
        self,
        ticket: Ticket,
        stream: ReplyStream,
        canceller: Canceller,
        patience: Patience,
        meter: Meter,
        on_close: Callable[[Exchange], None],
    ) -> None:
        self.ticket = ticket
        self.ended = False
        self._stream = stream
        self._canceller = canceller
        self._patience = patience
        self._meter = meter
        self._on_close = on_close
        self._spoke = False
        self._gone = False
        self._stopped: Failure | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def id(self) -> str:
        return self.ticket.key.request

    def watch(self, receive: Callable[[], Awaitable[Any]]) -> None:
        """Notice when the client goes away. Call it once the body was read."""
        self._watcher = asyncio.create_task(self._watch(receive), name=f"client of {self.id}")

    def stop(self, why: Failure) -> None:
        """End the answer here and now; the request is cancelled."""
        self._stopped = why
        self._stream.nudge()

    async def read(self, wake_s: float) -> list[TapeFrame]:
        """Frames as they come, the terminal one last; empty soon after `wake_s` (monotonic). Raises ClientGone."""
        while True:
            until_s = wake_s if self._spoke else min(wake_s, time.monotonic() + PATIENCE_INTERVAL_S)
            batch = await self._stream.read(until_s)
            if self._gone:
                raise ClientGone
            if not batch and self._stopped is not None:
                batch = [TapeFrame(0, Frame(id=self.id, attempt=0, error=self._stopped))]
            now_s = time.monotonic()
            if batch:
                self._spoke = True
                self.ended = batch[-1].frame.terminal
                self._meter.note(batch, now_s)
                return batch
            if not self._spoke:
                await self._patience.check(self.ticket, now_s)
            if now_s >= wake_s:
                return batch

    def close(self) -> None:
        """Let go of the request; cancels it unless its terminal frame is on the tape. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._watcher is not None:
            self._watcher.cancel()
        if not self._stream.ended or self._stream.diverged:
            why = self._stopped or GONE
            self._canceller.start(Order(self.ticket.key, self.ticket.prompt_seq, why, self._stream.last_seq))
        self._meter.close(time.monotonic())
        self._on_close(self)

    async def _watch(self, receive: Callable[[], Awaitable[Any]]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._stream.nudge()
