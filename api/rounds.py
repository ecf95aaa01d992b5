"""Rounds: what a replica does again and again, beside its requests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from inferflux.broker.errors import BrokerError
from inferflux.config.logs import get_logger

log = get_logger("api.rounds")


class Rounds:
    """Awaits `act()` about once in `interval_s`, from one interval after `start` until `close`.

    Pauses differ by up to a fifth, so that replicas which began together come apart. A round that fails is a line in
    the log, and the next one comes all the same.
    """

    def __init__(self, name: str, act: Callable[[], Awaitable[object]], interval_s: float) -> None:
        self._name = name
        self._act = act
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def close(self) -> None:
        """No round begins any more; one that runs is broken off."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                await self._act()
            except BrokerError as error:
                log.warning("round broken off", of=self._name, reason=str(error))
            except Exception as error:
                log.error("round failed", of=self._name, error=error)
