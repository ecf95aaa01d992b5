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
    """Hands each reply to the streams that wait for it. One ticker serves all streams: no timer for each token."""

    def __init__(self, broker: Broker, owner: str) -> None:
        self._broker = broker
        self._owner = owner
        self._streams: dict[str, list[ReplyStream]] = {}
        self._followed: dict[ReplyStream, Subscription] = {}
        self._closing: set[asyncio.Task[None]] = set()
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
        await asyncio.gather(*self._closing)
        if self._subscription is not None:
            await self._subscription.close()

    @property
    def num_streams(self) -> int:
        return len(self._all())

    def open(self, key: RequestKey) -> ReplyStream:
        """Open before the prompt is published, so that no frame can be early."""
        stream = ReplyStream(self._broker, key)
        self._streams.setdefault(key.request, []).append(stream)
        return stream

    async def follow(self, key: RequestKey, *, seen_seq: int = 0) -> ReplyStream:
        """A request that was accepted earlier, here or elsewhere: all that is on its tape, and then what comes."""
        stream = ReplyStream(self._broker, key, seen_seq)
        if key.owner == self._owner:
            self._streams.setdefault(key.request, []).append(stream)
        else:
            self._followed[stream] = await self._broker.listen_replies(key.owner, stream.push, request=key.request)
        stream.reread()
        return stream

    def forget(self, stream: ReplyStream) -> None:
        """Nothing more is read for this stream."""
        subscription = self._followed.pop(stream, None)
        if subscription is not None:
            closing = asyncio.create_task(subscription.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            return
        streams = self._streams.get(stream.key.request, [])
        if stream in streams:
            streams.remove(stream)
        if not streams:
            self._streams.pop(stream.key.request, None)

    def _all(self) -> list[ReplyStream]:
        return [*(stream for streams in self._streams.values() for stream in streams), *self._followed]

    def _on_reply(self, reply: Reply) -> None:
        for stream in self._streams.get(reply.key.request, ()):
            stream.push(reply)

    async def _tick(self) -> None:
        connected = True
        while True:
            await asyncio.sleep(TICK_S)
            was_connected, connected = connected, self._broker.connected
            now_s = time.monotonic()
            streams = self._all()
            for stream in streams:
                stream.tick(now_s)
            if connected and not was_connected:
                # Replies sent while the connection was down are only on the tape.
                log.info("reconnected", num_streams=len(streams))
                for stream in streams:
                    stream.reread()
