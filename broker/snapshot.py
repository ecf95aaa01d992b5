"""Streams as bytes and back, by JetStream's own snapshots: messages with their sequences, subjects and headers.

Only streams on disk can be saved: the tape, which lives in memory, is left out, so what ran is begun again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec

from inferflux.config.settings import Settings

from . import subjects, topology
from .errors import BrokerUnavailable, ConfigError
from .jetstream_api import JetStreamApi
from .link import Link
from .packet import Packet

CHUNK = 128 * 1024
SILENCE_S = 30.0

# What expires within seconds and is written anew by whoever lives.
_FLEETING = frozenset({subjects.BUCKET_WORKERS, subjects.BUCKET_PRESENCE})


class Head(msgspec.Struct, frozen=True):
    """What a stream was when it was saved, in the server's own terms."""

    config: dict[str, Any]
    state: dict[str, Any]

    @property
    def num_messages(self) -> int:
        return int(self.state["messages"])


def saved_streams(settings: Settings) -> list[str]:
    """Every stream that a backup holds."""
    fleeting = {subjects.kv_stream(bucket) for bucket in _FLEETING}
    return [each.name for each in topology.streams(settings) if each.storage == "file" and each.name not in fleeting]


class Snapshots:
    """Saves and restores streams over one connection with the rights of an admin."""

    def __init__(self, link: Link, *, timeout_s: float) -> None:
        self._link = link
        self._js = JetStreamApi(link, timeout_s=timeout_s)

    async def num_messages(self, stream: str) -> int | None:
        """None when there is no such stream."""
        info = await self._js.stream_info(stream)
        return None if info is None else int(info["state"]["messages"])

    async def save(self, stream: str) -> tuple[Head, AsyncIterator[bytes]]:
        """The stream's head, and its content in chunks, which have to be read to the end.

        Raises BrokerUnavailable when the server stops sending.
        """
        chunks: asyncio.Queue[Packet] = asyncio.Queue()
        inbox = self._link.inbox(f"snapshot-{stream}")
        subscription = await self._link.listen(inbox, chunks.put_nowait)
        try:
            # Lanes make their consumers anew, and what was in work has to be delivered again anyway.
            wanted = {"deliver_subject": inbox, "chunk_size": CHUNK, "no_consumers": True, "jsck": True}
            answer = await self._js.call("STREAM", "SNAPSHOT", stream, body=wanted, try_s=self._js.timeout_s)
        except BaseException:
            await subscription.close()
            raise

        async def content() -> AsyncIterator[bytes]:
            try:
                while chunk := await self._next(chunks, stream):
                    yield chunk
            finally:
                await subscription.close()

        return Head(answer["config"], answer["state"]), content()

    async def restore(self, head: Head, chunks: Iterable[bytes], *, num_replicas: int) -> None:
        """Put a stream in the place of whatever bears its name."""
        stream = str(head.config["name"])
        if await self.num_messages(stream) is not None:
            await self._js.call("STREAM", "DELETE", stream)
        config = head.config | {"num_replicas": num_replicas}
        answer = await self._js.call("STREAM", "RESTORE", stream, body={"config": config, "state": head.state})
        subject = str(answer["deliver_subject"])
        for chunk in chunks:
            _check(stream, await self._link.request(subject, chunk, timeout_s=SILENCE_S))
        _check(stream, await self._link.request(subject, b"", timeout_s=SILENCE_S))
        restored = await self.num_messages(stream)
        if restored != head.num_messages:
            raise ConfigError(f"stream {stream} has {restored} messages after restoring, not {head.num_messages}")

    async def align(self, settings: Settings) -> None:
        """Make what was restored what today's settings say, and create what the backup did not have."""
        await topology.ensure(self._js, settings, SILENCE_S)

    async def _next(self, chunks: asyncio.Queue[Packet], stream: str) -> bytes:
        try:
            async with asyncio.timeout(SILENCE_S):
                packet = await chunks.get()
        except TimeoutError:
            raise BrokerUnavailable(f"NATS sent no more of stream {stream} for {SILENCE_S:g} s") from None
        if packet.status is not None and packet.status >= 300:
            raise BrokerUnavailable(f"NATS ended the snapshot of {stream}: {packet.status} {packet.description}")
        if packet.reply:
            # The server sends on once it knows that this has arrived.
            self._link.send(packet.reply, b"")
        return packet.data


def _check(stream: str, packet: Packet) -> None:
    if packet.status is not None:
        raise BrokerUnavailable(f"NATS takes no more of stream {stream}: {packet.status} {packet.description}")
    error = msgspec.json.decode(packet.data).get("error") if packet.data else None
    if error is not None:
        raise ConfigError(f"stream {stream} cannot be restored: {error.get('description', error)}")
