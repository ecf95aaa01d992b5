"""The relay: one subscription for all of a replica's requests, one stream of frames for each."""

from __future__ import annotations

import asyncio
import contextlib
import time

from inferflux.broker.broker import Broker, Reply, Subscription
from inferflux.broker.subjects import RequestKey
from inferflux.config.logs import get_logger

from .replies import ReplyStream

log = get_logger("api.relay")

TICK_S = 0.1


class Relay:
    """Hands each reply to the stream that waits for it. One ticker serves all streams: no timer for each token."""

    def __init__(self, broker: Broker, owner: str) -> None:
        self._broker = broker
        self._owner = owner
        self._streams: dict[str, ReplyStream] = {}
        self._subscription: Subscription | None = None
        self._ticker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._subscription = await self._broker.listen_replies(self._owner, self._on_reply)
        self._ticker = asyncio.create_task(self._tick(), name="relay ticker")

    async def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        if self._subscription is not None:
            await self._subscription.close()

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def open(self, key: RequestKey) -> ReplyStream:
        """Open before the prompt is published, so that no frame can be early."""
        stream = self._streams[key.request] = ReplyStream(self._broker, key)
        return stream

    def forget(self, key: RequestKey) -> None:
        """Frames of this request are dropped from now on."""
        self._streams.pop(key.request, None)

    def _on_reply(self, reply: Reply) -> None:
        stream = self._streams.get(reply.key.request)
        if stream is not None:
            stream.push(reply)

    async def _tick(self) -> None:
        connected = True
        while True:
            await asyncio.sleep(TICK_S)
            was_connected, connected = connected, self._broker.connected
            now_s = time.monotonic()
            for stream in self._streams.values():
                stream.tick(now_s)
            if connected and not was_connected:
                # Replies sent while the connection was down are only on the tape.
                log.info("reconnected", num_streams=len(self._streams))
                for stream in self._streams.values():
                    stream.reread()
