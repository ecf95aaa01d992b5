"""A prompt that JetStream delivered: held under a lease until it is acknowledged or handed back."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .broker import Delivery
from .jetstream_api import ERR_DELETE_FAILED, ERR_NO_MESSAGE, ERR_NO_SEQUENCE, ApiError, JetStreamApi
from .link import Link
from .packet import Packet
from .subjects import STREAM_PROMPTS, Lane

NANOS = 1_000_000_000


class AckSubject(msgspec.Struct, frozen=True):
    """What the reply subject of a delivered message tells (with or without a domain in front)."""

    num_delivered: int
    stream_seq: int
    consumer_seq: int
    stored_s: float
    num_pending: int

    @classmethod
    def parse(cls, subject: str) -> AckSubject:
        """Raises ValueError for any other subject."""
        tokens = subject.split(".")
        if tokens[:2] != ["$JS", "ACK"] or len(tokens) < 9:
            raise ValueError(f"{subject!r} acknowledges nothing")
        start = 4 if len(tokens) == 9 else 6
        delivered, stream_seq, consumer_seq, nanos, pending = (int(token) for token in tokens[start : start + 5])
        return cls(delivered, stream_seq, consumer_seq, nanos / NANOS, pending)


class JetStreamDelivery(Delivery):
    """One prompt in this process's hands; `packet` is the message as the consumer sent it."""

    def __init__(self, link: Link, js: JetStreamApi, lane: Lane, packet: Packet) -> None:
        self._link = link
        self._js = js
        self._lane = lane
        self.packet = packet
        self._headers: Mapping[str, str] | None = None
        self._about = AckSubject.parse(packet.reply)

    @property
    def lane(self) -> Lane:
        return self._lane

    @property
    def body(self) -> bytes:
        return self.packet.data

    @property
    def headers(self) -> Mapping[str, str]:
        if self._headers is None:
            self._headers = self.packet.headers
        return self._headers

    @property
    def seq(self) -> int:
        return self._about.stream_seq

    @property
    def stored_s(self) -> float:
        return self._about.stored_s

    @property
    def num_delivered(self) -> int:
        return self._about.num_delivered

    @property
    def num_pending(self) -> int:
        return self._about.num_pending

    async def ack(self) -> None:
        answer = await self._link.request(self.packet.reply, b"+ACK")
        if answer.status is not None:
            # The consumer went away while the prompt ran; the prompt itself is still stored.
            await delete_prompt(self._js, self.seq)

    async def extend(self) -> None:
        self._link.send(self.packet.reply, b"+WPI")

    async def release(self, delay_s: float = 0.0) -> None:
        release(self._link, self.packet, delay_s)


def release(link: Link, packet: Packet, delay_s: float = 0.0) -> None:
    """Hand a delivered message back; a connection that is down lets its lease run out instead."""
    delay = b' {"delay": %d}' % int(delay_s * NANOS) if delay_s > 0 else b""
    link.send(packet.reply, b"-NAK" + delay)


async def delete_prompt(js: JetStreamApi, seq: int) -> bool:
    """Delete a stored prompt, held or not. False when it was gone."""
    try:
        answer = await js.call("STREAM", "MSG", "DELETE", STREAM_PROMPTS, body={"seq": seq, "no_erase": True})
    except ApiError as error:
        gone = error.err_code == ERR_DELETE_FAILED and "no message found" in error.description
        if gone or error.err_code in (ERR_NO_MESSAGE, ERR_NO_SEQUENCE):
            return False
        raise
    return bool(answer.get("success"))
