"""The gossiper: tells the other workers of a model what this one has served, and hears it from them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from inferflux.broker.broker import Broker, Subscription
from inferflux.broker.errors import BrokerError
from inferflux.broker.fairshare import FairShare
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.fleet import Gossip, decode_gossip
from inferflux.config.logs import get_logger

log = get_logger("worker.gossip")

ALONE_INTERVALS = 10
"""Between two messages of a worker that nobody else listens to: each costs it and the broker a wake."""


class Gossiper:
    """Sends what `tell(now_s)` gives once an interval. `on_news` is called each time, and when another was heard:
    what may be pulled can be another then."""

    def __init__(
        self,
        model: str,
        broker: Broker,
        fair: FairShare,
        interval_s: float,
        *,
        tell: Callable[[float], Gossip],
        on_news: Callable[[], None],
    ) -> None:
        self._model = model
        self._broker = broker
        self._fair = fair
        self._interval_s = interval_s
        self._tell = tell
        self._on_news = on_news
        self._company = asyncio.Event()
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._subscription = await self._broker.listen_gossip(self._model, self._hear)
        self._task = asyncio.create_task(self._run(), name="gossip")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._subscription is not None:
            with contextlib.suppress(BrokerError):
                await self._subscription.close()

    def _hear(self, body: bytes) -> None:
        now_s = time.monotonic()
        was_alone = not self._fair.has_company(now_s)
        try:
            self._fair.merge(decode_gossip(body), now_s)
        except ValueError as error:
            log.warning("gossip ignored", model=self._model, reason=str(error))
        if was_alone and self._fair.has_company(now_s):
            self._company.set()
        self._on_news()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(BrokerError):
                await self._broker.send_gossip(self._model, encode(self._tell(time.monotonic())))
            self._company.clear()
            alone = not self._fair.has_company(time.monotonic())
            self._on_news()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s * (ALONE_INTERVALS if alone else 1)):
                    await self._company.wait()
