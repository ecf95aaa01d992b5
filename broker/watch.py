"""Watching a KV bucket: a short-lived consumer that is made anew whenever it may have missed something."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

from inferflux.config.logs import get_logger

from . import subjects
from .broker import Entry
from .delivery import NANOS, AckSubject
from .errors import BrokerError
from .jetstream_api import JetStreamApi
from .link import Link, LinkSubscription
from .packet import Packet

HEARTBEAT_S = 2.0
IDLE_S = 60.0
RETRY_S = 0.5

log = get_logger("broker")


class BucketWatch(AsyncIterator[Entry | None]):
    """All entries, None once, then every change. After a gap it lists again and reports the difference."""

    def __init__(self, link: Link, js: JetStreamApi, bucket: str, *, headers_only: bool = False) -> None:
        self._link = link
        self._js = js
        self._bucket = bucket
        self._headers_only = headers_only
        self._stream = subjects.kv_stream(bucket)
        self._prefix = subjects.kv(bucket, "")
        self._known: dict[str, int] = {}
        self._listed: set[str] | None = None
        self._out: asyncio.Queue[Entry | None] = asyncio.Queue()
        self._stale = asyncio.Event()
        self._heard = False
        self._consumer_seq = 0
        self._announced = False
        self._runner: asyncio.Task[None] | None = None

    async def __anext__(self) -> Entry | None:
        if self._runner is None:
            self._link.on_restored.append(self._stale.set)
            self._runner = asyncio.create_task(self._run())
        if not self._runner.done() or not self._out.empty():
            return await self._out.get()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if self._runner is None:
            return
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        with contextlib.suppress(ValueError):
            self._link.on_restored.remove(self._stale.set)

    async def _run(self) -> None:
        while True:
            name = secrets.token_hex(8)
            subscription: LinkSubscription | None = None
            try:
                subscription = await self._list(name)
                await self._follow()
                log.debug("watch starts anew", bucket=self._bucket)
            except BrokerError as error:
                log.warning("cannot watch", bucket=self._bucket, reason=str(error))
                await asyncio.sleep(RETRY_S)
            finally:
                if subscription is not None:
                    await subscription.close()
                    await self._drop(name)

    async def _list(self, name: str) -> LinkSubscription:
        inbox = f"{self._link.inbox('w')}.{name}"
        self._stale.clear()
        self._listed = set()
        self._consumer_seq = 0
        subscription = await self._link.listen(inbox, self._on_packet)
        config = {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "filter_subject": f"{self._prefix}>",
            "headers_only": self._headers_only,
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "idle_heartbeat": int(HEARTBEAT_S * NANOS),
            "inactive_threshold": int(IDLE_S * NANOS),
        }
        try:
            await self._link.wait_connected(self._js.timeout_s)
            made = await self._js.call(
                "CONSUMER",
                "CREATE",
                self._stream,
                name,
                f"{self._prefix}>",
                body={"stream_name": self._stream, "config": config},
            )
        except BaseException:
            await subscription.close()
            raise
        # Entries may have come already; then their own count of what is left says when the list is complete.
        if made.get("num_pending", 0) == 0 and self._consumer_seq == 0:
            self._complete()
        return subscription

    async def _follow(self) -> None:
        while True:
            self._heard = False
            try:
                async with asyncio.timeout(2.5 * HEARTBEAT_S):
                    await self._stale.wait()
                return
            except TimeoutError:
                if not self._heard:
                    return

    async def _drop(self, name: str) -> None:
        # Best effort: the server forgets an idle consumer by itself.
        with contextlib.suppress(BrokerError):
            self._link.send(subjects.js_api("CONSUMER", "DELETE", self._stream, name), b"")

    def _on_packet(self, packet: Packet) -> None:
        self._heard = True
        if packet.status is not None:
            last = packet.header(subjects.HEADER_LAST_CONSUMER)
            if packet.status != 100 or (last is not None and int(last) != self._consumer_seq):
                self._stale.set()
            return
        about = AckSubject.parse(packet.reply)
        self._consumer_seq += 1
        if about.consumer_seq != self._consumer_seq:
            self._stale.set()
            return
        self._take(packet, about.stream_seq)
        if about.num_pending == 0 and self._listed is not None:
            self._complete()

    def _take(self, packet: Packet, revision: int) -> None:
        key = packet.subject.removeprefix(self._prefix)
        if any(packet.header(name) is not None for name in subjects.MARKER_HEADERS):
            if self._known.pop(key, None) is not None:
                self._out.put_nowait(Entry(key, None, revision))
            return
        if self._listed is not None:
            self._listed.add(key)
        if self._known.get(key, 0) < revision:
            self._known[key] = revision
            self._out.put_nowait(Entry(key, packet.data, revision))

    def _complete(self) -> None:
        listed, self._listed = self._listed, None
        for key in self._known.keys() - (listed or set()):
            self._out.put_nowait(Entry(key, None, self._known.pop(key)))
        if not self._announced:
            self._announced = True
            self._out.put_nowait(None)
