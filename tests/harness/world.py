"""A fleet's brokers over one implementation of the broker, and the passing of its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from inferflux.broker.broker import Broker, Delivery, LaneLimits
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import Lane
from inferflux.config.settings import Settings

from .nats import NatsServers

T = TypeVar("T")
WAIT_S = 10.0
LIMITS = LaneLimits(max_running=8, lease_s=30.0, idle_s=60.0)


class World:
    """Brokers of one fleet, and time."""

    def __init__(self, settings: Settings, servers: NatsServers | None) -> None:
        self.settings = settings
        self.servers = servers
        self.now_s = 1000.0
        self.hub = MemoryHub(lambda: self.now_s, settings)
        self._brokers: list[Broker] = []

    async def broker(self, role: str = "worker", settings: Settings | None = None) -> Broker:
        if self.servers is None:
            hub = self.hub if settings is None else MemoryHub(lambda: self.now_s, settings)
            broker: Broker = MemoryBroker(hub)
        else:
            broker = await self.servers.connect(role, settings=settings)
        self._brokers.append(broker)
        return broker

    async def elapse(self, seconds: float) -> None:
        """Let time pass: at once in memory, for real on a server."""
        if self.servers is None:
            self.now_s += seconds
            self.hub.settle()
        else:
            await asyncio.sleep(seconds)

    async def pull(self, broker: Broker, lane: Lane, limits: LaneLimits = LIMITS) -> Delivery:
        """The lane's next prompt, which must come soon."""
        async with asyncio.timeout(WAIT_S):
            while (delivery := await broker.pull(lane, limits)) is None:
                await self.elapse(0.01)
        return delivery

    async def until_empty(self, broker: Broker, model: str) -> None:
        """Return once the stream has dropped what was acknowledged: on replicas that follows a moment later."""
        async with asyncio.timeout(WAIT_S):
            while await broker.backlog(model):
                await self.elapse(0.01)

    async def close(self) -> None:
        for broker in self._brokers:
            await broker.close()


class Inbox:
    """Collects what a callback is given."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[object] = asyncio.Queue()
        self.put: Callable[[object], None] = self._queue.put_nowait

    async def next(self, kind: type[T]) -> T:
        async with asyncio.timeout(WAIT_S):
            item = await self._queue.get()
        assert isinstance(item, kind)
        return item

    @property
    def empty(self) -> bool:
        return self._queue.empty()
