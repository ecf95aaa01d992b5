"""Anchors: the heads of the audit log's chains, kept in KV, where whoever can write the files cannot reach them."""

from __future__ import annotations

import asyncio

import msgspec

from inferflux.broker.broker import Broker
from inferflux.broker.errors import BrokerError
from inferflux.broker.subjects import BUCKET_AUDIT, encode_token
from inferflux.config.audit import Audit
from inferflux.config.chain import Head
from inferflux.config.logs import get_logger
from inferflux.config.metrics import PolicyMetrics

log = get_logger("registry.audit")

INTERVAL_S = 1.0


class Anchors:
    """The bucket `audit`: one head for each chain, as of a second ago at most while its process lives."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def put(self, head: Head) -> None:
        """Raises BrokerError."""
        bucket = await self._broker.bucket(BUCKET_AUDIT)
        await bucket.put(encode_token(head.chain), msgspec.json.encode(head))

    async def heads(self) -> list[Head]:
        """Every chain's head, oldest first. Raises BrokerError."""
        heads = []
        for entry in await (await self._broker.bucket(BUCKET_AUDIT)).entries():
            try:
                heads.append(msgspec.json.decode(entry.value or b"", type=Head))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                log.error("audit anchor not understood", key=entry.key, reason=str(error))
        return sorted(heads, key=lambda head: head.at)


class Anchorage:
    """Keeps one process's head anchored, and its lines counted. `close` ends the log too, so that its last line is
    anchored."""

    def __init__(self, audit: Audit, anchors: Anchors, metrics: PolicyMetrics) -> None:
        audit.on_written = metrics.audit_lines.inc
        audit.on_lost = metrics.audit_lost.inc
        self._audit = audit
        self._anchors = anchors
        self._anchored = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._audit.active:
            self._task = asyncio.create_task(self._run(), name="audit anchors")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await asyncio.to_thread(self._audit.close)
            await self._anchor()

    async def _run(self) -> None:
        while True:
            await self._anchor()
            await asyncio.sleep(INTERVAL_S)

    async def _anchor(self) -> None:
        head = self._audit.head
        if head is None or head.seq == self._anchored:
            return
        try:
            await self._anchors.put(head)
        except BrokerError as error:
            log.warning("audit log not anchored", reason=str(error))
        else:
            self._anchored = head.seq
