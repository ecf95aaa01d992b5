"""The mount: one model on this worker, while engines come, are replaced, and go."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable

import msgspec

from inferflux.broker.broker import Broker
from inferflux.broker.errors import BrokerError
from inferflux.broker.wire.fleet import ModelBeat
from inferflux.config.logs import get_logger
from inferflux.config.settings import MinShareSettings

from .attempt import Attempt
from .host import ModelHost
from .intake import Intake
from .memory import give_back

log = get_logger("worker.mount")

LINGER_S = 1.0
"""How long after its removal a model may still be asked for by a replica that has not heard of it."""

LOOK_S = 0.25


def nobody(_: Mount) -> None:
    """Waits for engines when nothing else does."""


class Mount:
    """`host` has the engine that new prompts go to, `coming` one that is being loaded, `leaving` those that only finish
    what they run. The intake stays the same throughout, and with it the model's fair share.

    `attempts` are the worker's, of every model. `on_ready` is called when another engine has begun to serve; `warm`
    are the prefixes that were computed for operators, `fetched` the share of the model's file that is here.
    """

    def __init__(self, intake: Intake, broker: Broker, attempts: Callable[[], Iterable[Attempt]]) -> None:
        self.model = intake.model
        self.intake = intake
        self.coming: ModelHost | None = None
        self.leaving: list[ModelHost] = []
        self.unloading = False
        self.failure: ModelBeat | None = None
        self.warm: dict[str, None] = {}
        self.fetched = 0.0
        self.on_ready: Callable[[Mount], None] = nobody
        self._broker = broker
        self._attempts = attempts
        self._min_share: MinShareSettings | None = None
        self._left = asyncio.Event()
        self._joined = False
        self._pulling: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def host(self) -> ModelHost | None:
        return self.intake.host

    @property
    def hosts(self) -> list[ModelHost]:
        """Every engine of this model, the one first that serves or is going to."""
        return [host for host in (self.host, self.coming, *self.leaving) if host is not None]

    def set_shares(self, min_share: MinShareSettings) -> None:
        """What each class keeps at least, in every engine of this model, now and later."""
        self._min_share = min_share
        self.intake.fair.set_shares(min_share)
        for host in self.hosts:
            host.set_shares(min_share)

    def ended(self) -> None:
        """An attempt has ended: an engine that is leaving may have been waiting for it."""
        self._left.set()

    async def put(self, host: ModelHost) -> bool:
        """Load an engine, and have it take over from the last one, which finishes what it runs. Where it fails to load,
        the last one goes on; False then."""
        self.coming, self.failure, self.unloading = host, None, False
        if self._min_share is not None:
            host.set_shares(self._min_share)
        if not self._joined:
            await self.intake.join()
            self._joined = True
        await host.start()
        self.coming = None
        if host.state != "ready":
            self.failure = host.beat()
            await host.close()
            return False
        last, self.intake.host = self.host, host
        host.on_free = self.intake.wake
        self.intake.placement.forget()
        self.on_ready(self)
        if self._pulling is None:
            self._pulling = asyncio.create_task(self.intake.run())
        self.intake.wake()
        if last is not None:
            self._dismiss(last)
        return True

    def fail(self, backend: str, reason: str, digest: str) -> None:
        """There is no engine to load for what the registry says now."""
        self.failure = ModelBeat(id=self.model, backend=backend, state="failed", reason=reason, digest=digest)
        log.error("model failed to load", model=self.model, backend=backend, reason=reason)

    async def run_dry(self, interrupted: asyncio.Event, patience_s: float) -> None:
        """Serve what is queued, until the queue has been empty for a while: so whoever published before it heard that
        the model goes is served. Nobody is waited for longer than `patience_s`."""
        now_s = time.monotonic()
        deadline_s, filled_s = now_s + patience_s, now_s
        while self.host is not None and not interrupted.is_set():
            try:
                if await self._broker.backlog(self.model):
                    filled_s = time.monotonic()
            except BrokerError as error:
                log.warning("backlog unknown", model=self.model, reason=str(error))
            if time.monotonic() > min(deadline_s, filled_s + LINGER_S):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await interrupted.wait()

    async def finish(self) -> None:
        """Pull no more, let what runs come to its end, and free every engine."""
        await self.stop()
        last, self.intake.host = self.host, None
        if last is not None:
            self._dismiss(last)
        await asyncio.gather(*self._closing)
        await self.leave()

    async def stop(self) -> None:
        """Pull no more."""
        self.intake.stop()
        if self._pulling is not None:
            await self._pulling

    async def leave(self) -> None:
        """Neither listen nor gossip any more."""
        if self._joined:
            await self.intake.leave()

    async def close(self) -> None:
        """End every engine at once."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await asyncio.gather(*(host.close() for host in self.hosts))

    def beat(self) -> ModelBeat:
        """This model's part of the heartbeat: its state is that of the engine which serves, if any."""
        serving = self.host or (self.leaving[0] if self.leaving else None)
        if serving is None:
            return self.coming.beat() if self.coming is not None else self._without_engine()
        beat = serving.beat()
        others = [host.beat() for host in self.leaving if host is not serving]
        return msgspec.structs.replace(
            beat,
            state="unloading" if self.unloading else beat.state,
            reason=self.failure.reason if self.failure is not None else beat.reason,
            progress=round(self.coming.progress, 2) if self.coming is not None else 1.0,
            warm=tuple(self.warm),
            num_running=beat.num_running + sum(other.num_running for other in others),
            num_waiting=beat.num_waiting + sum(other.num_waiting for other in others),
            num_pages=beat.num_pages + sum(other.num_pages for other in others),
            num_pages_used=beat.num_pages_used + sum(other.num_pages_used for other in others),
        )

    def _without_engine(self) -> ModelBeat:
        return self.failure or ModelBeat(id=self.model, backend="", state="loading", progress=round(self.fetched, 2))

    def _dismiss(self, host: ModelHost) -> None:
        self.leaving.append(host)
        task = asyncio.create_task(self._close_when_idle(host))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close_when_idle(self, host: ModelHost) -> None:
        while any(attempt.host is host for attempt in self._attempts()):
            self._left.clear()
            await self._left.wait()
        await host.close()
        self.leaving.remove(host)
        await asyncio.to_thread(give_back)
        log.info("engine closed", model=self.model, backend=host.backend)
