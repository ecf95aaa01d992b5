"""The exchange: one accepted request and its answer to one client, to whatever end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from inferflux.broker.errors import Code
from inferflux.broker.subjects import Lane, RequestKey
from inferflux.broker.wire.requests import Failure, Frame, failure
from inferflux.config.logs import get_logger
from inferflux.registry.models import ModelEntry

from .cancel import Order
from .meter import Meter
from .outlook import Outlook, Place
from .patience import Patience
from .replies import ReplyStream, TapeFrame

log = get_logger("api")

PATIENCE_INTERVAL_S = 1.0
GONE = failure(Code.CANCELLED, "the client went away")


class ClientGone(Exception):
    """Nobody is left to answer."""


class Ticket(msgspec.Struct, frozen=True):
    """A stored prompt. `created_s` is Unix time, `accepted_s` the monotonic clock's. A resumable request outlives its
    reader for a while. `place` is its place in the queue, where that is known."""

    key: RequestKey
    lane: Lane
    model: ModelEntry
    prompt_seq: int
    created_s: float
    accepted_s: float
    resumable: bool = False
    place: Place | None = None


class Exchange:
    """Read it to the end, then close it. What becomes of a request that is closed earlier is up to `on_close`."""

    def __init__(
        self,
        ticket: Ticket,
        stream: ReplyStream,
        patience: Patience,
        meter: Meter,
        on_close: Callable[[Exchange], None],
    ) -> None:
        stream.prompt_seq = ticket.prompt_seq
        self.ticket = ticket
        self.stream = stream
        self.ended = False
        self.spoke = False
        self.stopped: Failure | None = None
        self.failure: Failure | None = None
        self._patience = patience
        self._meter = meter
        self._on_close = on_close
        self._gone = False
        self._watcher: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def id(self) -> str:
        return self.ticket.key.request

    @property
    def over(self) -> bool:
        """Whether nobody works on it any more."""
        return self.stream.ended and not self.stream.diverged

    @property
    def order(self) -> Order:
        """How to cancel what is left of it."""
        return Order(self.ticket.key, self.ticket.prompt_seq, self.stopped or GONE, self.stream.last_seq)

    def watch(self, receive: Callable[[], Awaitable[Any]]) -> None:
        """Notice when the client goes away. Call it once the body was read."""
        self._watcher = asyncio.create_task(self._watch(receive), name=f"client of {self.id}")

    def stop(self, why: Failure) -> None:
        """End the answer here and now."""
        self.stopped = why
        self.stream.nudge()

    def outlook(self) -> Outlook | None:
        """What a client may be told while it waits for the first frame."""
        if self.spoke or self.ticket.place is None:
            return None
        return self.ticket.place.outlook()

    async def read(self, wake_s: float) -> list[TapeFrame]:
        """Frames as they come, the terminal one last; empty soon after `wake_s` (monotonic). Raises ClientGone."""
        while True:
            until_s = wake_s if self.spoke else min(wake_s, time.monotonic() + PATIENCE_INTERVAL_S)
            batch = await self.stream.read(until_s)
            if self._gone:
                raise ClientGone
            if not batch and self.stopped is not None:
                batch = [TapeFrame(0, Frame(id=self.id, attempt=0, error=self.stopped))]
            now_s = time.monotonic()
            if batch:
                self.spoke = True
                self.ended = batch[-1].frame.terminal
                # What was made up here is no end on the tape.
                self.failure = batch[-1].frame.error if batch[-1].seq else None
                self._meter.note(batch, now_s)
                return batch
            if not self.spoke:
                await self._patience.check(self.ticket, now_s)
            if now_s >= wake_s:
                return batch

    def close(self) -> None:
        """Let go of the request. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._watcher is not None:
            self._watcher.cancel()
        self._meter.close(time.monotonic())
        self._on_close(self)

    async def _watch(self, receive: Callable[[], Awaitable[Any]]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self.stream.nudge()
