"""Direct reads: many of a stream's messages by one request, from whichever replica answers; it may lag."""

from __future__ import annotations

import asyncio

import msgspec

from . import subjects
from .errors import BrokerUnavailable
from .link import Link
from .packet import Packet

BATCH = 1000


class DirectReads:
    """Reads of one stream, over an inbox of their own."""

    def __init__(self, link: Link, stream: str) -> None:
        self._link = link
        self._stream = stream
        self._inbox = link.inbox(f"d.{stream}")
        self._reads: dict[str, asyncio.Queue[Packet | None]] = {}
        self._num_reads = 0
        link.on_lost.append(self._lost)

    async def open(self) -> None:
        await self._link.listen(f"{self._inbox}.*", self._on_packet)

    async def batch(self, subject: str, seq: int, timeout_s: float) -> list[Packet]:
        """At most `BATCH` messages on matching subjects from a sequence on, oldest first. Raises BrokerUnavailable."""
        self._num_reads += 1
        token = str(self._num_reads)
        packets: asyncio.Queue[Packet | None] = asyncio.Queue()
        self._reads[token] = packets
        body = msgspec.json.encode({"batch": BATCH, "seq": seq, "next_by_subj": subject})
        found: list[Packet] = []
        try:
            self._link.send(subjects.js_api("DIRECT", "GET", self._stream), body, f"{self._inbox}.{token}")
            async with asyncio.timeout(timeout_s):
                while (packet := await packets.get()) is not None:
                    if packet.status is None:
                        found.append(packet)
                    elif packet.status in (204, 404):
                        return found
                    else:
                        raise BrokerUnavailable(f"{self._stream} cannot be read: {packet.status} {packet.description}")
        except TimeoutError:
            raise BrokerUnavailable(f"{self._stream} does not answer") from None
        finally:
            del self._reads[token]
        raise BrokerUnavailable("the connection to NATS was lost")

    def _on_packet(self, packet: Packet) -> None:
        packets = self._reads.get(packet.subject.rpartition(".")[2])
        if packets is not None:
            packets.put_nowait(packet)

    def _lost(self) -> None:
        for packets in self._reads.values():
            packets.put_nowait(None)


def sequence(packet: Packet) -> int:
    """The sequence of a message that was read."""
    return int(packet.header(subjects.HEADER_SEQUENCE) or 0)
