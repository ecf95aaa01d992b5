"""Pressure: how full the tape and the tenants' queues are, looked up once an interval and not for each request."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from inferflux.broker.broker import Broker
from inferflux.broker.errors import BrokerError
from inferflux.config.logs import get_logger

log = get_logger("api")

INTERVAL_S = 1.0


class Pressure:
    """A tenant's queue is what the streams held at the last look, plus what this replica admitted since: with several
    replicas a bound may be overrun by what the others admit within one interval."""

    def __init__(self, broker: Broker, *, count_queues: bool) -> None:
        self.tape_fill = 0.0
        self.answering = False
        self._broker = broker
        self._count_queues = count_queues
        self._stored: Counter[str] = Counter()
        self._admitted: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.look()
        self._task = asyncio.create_task(self._run(), name="pressure")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def num_queued(self, tenant: str) -> int:
        """Prompts of a tenant, waiting and running, over all models and classes."""
        return self._stored[tenant] + self._admitted[tenant]

    def admit(self, tenant: str) -> None:
        self._admitted[tenant] += 1

    async def look(self) -> None:
        """Ask the broker now. Where it gives no answer, the last one stands."""
        admitted = self._admitted.copy()
        try:
            self.tape_fill = await self._broker.tape_fill()
            if self._count_queues:
                stored: Counter[str] = Counter()
                for lane, num_prompts in (await self._broker.backlog()).items():
                    stored[lane.tenant] += num_prompts
                self._stored = stored
                self._admitted -= admitted
        except BrokerError as error:
            if self.answering:
                log.warning("broker does not answer", reason=str(error))
            self.answering = False
        else:
            self.answering = True

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.look()
