"""A fleet's brokers over one implementation of the broker, and the passing of its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from inferflux.broker.broker import Bell, Broker, Delivery, LaneLimits, Reply
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import Lane, RequestKey
from inferflux.config.settings import Settings

from .nats import NatsServers

T = TypeVar("T")
WAIT_S = 30.0
LIMITS = LaneLimits(max_running=8, lease_s=30.0, idle_s=60.0)
WARM_UP = "warm-up"
"""What says nothing but that its listener is heard of: a request's name, a tenant, or a body."""


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
            broker = await self.servers.connect(role, settings=settings or self.settings)
        self._brokers.append(broker)
        return broker

    def clock(self) -> float:
        """Seconds, which `elapse` adds to; on a server others pass too."""
        return self.now_s if self.servers is None else time.monotonic()

    async def elapse(self, seconds: float) -> None:
        """Let time pass: at once in memory, for real on a server."""
        if self.servers is None:
            self.now_s += seconds
            self.hub.settle()
        else:
            await asyncio.sleep(seconds)

    async def warm_up(self, say: Callable[[], Awaitable[object]], *inboxes: Inbox) -> None:
        """In a cluster, say warm-ups until every inbox has heard one: that somebody listens takes a moment to reach
        the other servers. Elsewhere nothing is said, since a listener is heard of at once."""
        if self.servers is None or self.servers.num_nodes == 1:
            return
        async with asyncio.timeout(WAIT_S):
            while not all(inbox.is_warm for inbox in inboxes):
                await say()
                await asyncio.sleep(0.01)

    async def in_step(self) -> None:
        """In a cluster, return when every replica has what its leader has: lists and pulls may be another's."""
        if self.servers is not None and self.servers.num_nodes > 1:
            await self.servers.until_in_step()

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
    """Collects what a callback is given, but for warm-ups."""

    def __init__(self) -> None:
        self.is_warm = False
        self._queue: asyncio.Queue[object] = asyncio.Queue()

    def put(self, item: object) -> None:
        if _is_warm_up(item):
            self.is_warm = True
        else:
            self._queue.put_nowait(item)

    async def next(self, kind: type[T]) -> T:
        async with asyncio.timeout(WAIT_S):
            item = await self._queue.get()
        assert isinstance(item, kind)
        return item

    @property
    def empty(self) -> bool:
        return self._queue.empty()


def _is_warm_up(item: object) -> bool:
    match item:
        case Bell():
            return item.lane.tenant == WARM_UP
        case RequestKey():
            return item.request == WARM_UP
        case Reply():
            return item.body == WARM_UP.encode()
        case _:
            return item == WARM_UP.encode()
