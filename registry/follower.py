"""The follower: keeps a `Fleet` up to date from the `workers` bucket."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import cast

import msgspec

from inferflux.broker.broker import Broker, Entry
from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.subjects import BUCKET_WORKERS
from inferflux.config.logs import get_logger

from .fleet import Fleet

log = get_logger("registry.fleet")

RETRY_S = 0.5


class FleetFollower:
    """Watches heartbeats until it is closed. `ready` is set once the fleet as of the start is known."""

    def __init__(self, broker: Broker) -> None:
        self.fleet = Fleet(time.monotonic())
        self.ready = asyncio.Event()
        self._broker = broker
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._follow(), name="fleet follower")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self) -> None:
        while True:
            try:
                await self._watch()
            except BrokerUnavailable as error:
                log.warning("fleet not watched", reason=str(error))
            except Exception as error:
                log.error("fleet not watched", error=error)
            await asyncio.sleep(RETRY_S)

    async def _watch(self) -> None:
        bucket = await self._broker.bucket(BUCKET_WORKERS)
        keys: set[str] = set()
        watch = cast("AsyncGenerator[Entry | None]", bucket.watch())
        async with contextlib.aclosing(watch) as entries:
            async for entry in entries:
                now_s = time.monotonic()
                if entry is None:
                    self.fleet.forget_absent(keys, now_s)
                    self.ready.set()
                    continue
                keys.add(entry.key)
                try:
                    self.fleet.apply(entry, now_s)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    log.warning("heartbeat not understood", worker=entry.key, reason=str(error))
