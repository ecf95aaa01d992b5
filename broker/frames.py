"""The hot path: frames go to the tape without waiting, and each one's acknowledgement comes back to its future."""

from __future__ import annotations

import asyncio
import re

from .errors import BrokerError, BrokerUnavailable, TapeFull
from .link import Link
from .packet import Packet

_SEQ = re.compile(rb'"seq": ?(\d+)')


class FramePublisher:
    """Publishes frames and matches acknowledgements; one inbox subscription and one timer for all of them."""

    def __init__(self, link: Link, *, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._inbox = link.inbox("f")
        self._waiting: dict[int, tuple[asyncio.Future[int], float]] = {}
        self._num_sent = 0
        self._timer: asyncio.TimerHandle | None = None
        link.on_lost.append(self._lost)

    async def open(self) -> None:
        await self._link.listen(f"{self._inbox}.*", self._on_ack)

    def send(self, subject: str, body: bytes) -> asyncio.Future[int]:
        """The future is the message's sequence on the tape, or TapeFull, or BrokerUnavailable."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._num_sent += 1
        try:
            self._link.send(subject, body, f"{self._inbox}.{self._num_sent}")
        except BrokerError as error:
            _fail(future, error)
            return future
        self._waiting[self._num_sent] = (future, loop.time() + self._timeout_s)
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s, self._expire)
        return future

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._lost()

    def _on_ack(self, packet: Packet) -> None:
        waiting = self._waiting.pop(int(packet.subject.rpartition(".")[2]), None)
        if waiting is None or waiting[0].done():
            return
        seq = None if packet.raw_headers or b'"error"' in packet.data else _SEQ.search(packet.data)
        if seq is None:
            _fail(waiting[0], _refusal(packet))
        else:
            waiting[0].set_result(int(seq[1]))

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        for number, (future, due) in tuple(self._waiting.items()):
            if due > now:
                self._timer = loop.call_at(due, self._expire)
                return
            del self._waiting[number]
            _fail(future, BrokerUnavailable("the tape did not acknowledge a frame"))

    def _lost(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for future, _ in waiting.values():
            _fail(future, BrokerUnavailable("the connection to NATS was lost"))


def _refusal(packet: Packet) -> BrokerError:
    text = packet.data.decode("utf-8", "replace")
    if "maximum bytes exceeded" in text or "insufficient" in text:
        return TapeFull("the tape has no room for another frame")
    return BrokerUnavailable(f"the tape did not take a frame: {text or packet.description}")


def _fail(future: asyncio.Future[int], error: BrokerError) -> None:
    if not future.done():
        future.set_exception(error)
        # Marks it as seen: a failure that nobody awaits is not worth a warning.
        future.exception()
