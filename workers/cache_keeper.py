"""The cache keeper: clears and fills the prefix caches of this worker as operators order it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from inferflux.broker.errors import RequestError
from inferflux.broker.wire.policies import CacheOrders, WarmPrefix
from inferflux.broker.wire.requests import Message
from inferflux.config.logs import get_logger
from inferflux.registry.cache import cache_document
from inferflux.registry.control import Control

from .host import ModelHost
from .mount import Mount
from .render import Renderer
from .worker import Worker

log = get_logger("worker.cache")


class CacheKeeper:
    """A cache belongs to the epoch that its model was cleared last: what another epoch computed is never found, be it
    in memory or in files that were saved while this worker was away."""

    def __init__(self, control: Control, worker: Worker) -> None:
        self._control = control
        self._worker = worker
        self._orders = CacheOrders()
        self._filling: dict[str, asyncio.Task[None]] = {}
        control.policy.follow(cache_document(control.store), self._apply)
        worker.on_ready = self._start

    async def close(self) -> None:
        for task in self._filling.values():
            task.cancel()
        await asyncio.gather(*self._filling.values(), return_exceptions=True)

    def _apply(self, orders: CacheOrders) -> None:
        before, self._orders = self._orders, orders
        for model, mount in self._worker.mounts.items():
            if orders.cleared.get(model, 0) != before.cleared.get(model, 0):
                self._enter_epoch(mount, files=True)
            self._fill(mount)

    def _start(self, mount: Mount) -> None:
        """Another engine serves: it has computed nothing yet."""
        self._enter_epoch(mount, files=False)
        self._fill(mount)

    def _enter_epoch(self, mount: Mount, *, files: bool) -> None:
        mount.warm.clear()
        mount.intake.placement.forget()
        for host in mount.hosts:
            host.clear_cache(self._orders.cleared.get(mount.model, 0), files=files)

    def _fill(self, mount: Mount) -> None:
        wanted = [each for each in self._orders.warm if each.model == mount.model]
        for ident in mount.warm.keys() - {each.id for each in wanted}:
            del mount.warm[ident]
        if mount.host is None or not wanted:
            return
        if (earlier := self._filling.get(mount.model)) is not None:
            earlier.cancel()
        self._filling[mount.model] = asyncio.create_task(self._compute(mount, mount.host, wanted))

    async def _compute(self, mount: Mount, host: ModelHost, wanted: Sequence[WarmPrefix]) -> None:
        for prefix in wanted:
            if prefix.id in mount.warm:
                continue
            try:
                tokens = await asyncio.to_thread(_tokens, prefix, host.renderer)
                await host.compute(tokens, self._control.tenants.tenant(prefix.tenant).salt)
            except (RequestError, RuntimeError) as error:
                log.warning("prefix not computed", model=mount.model, prefix=prefix.id, reason=str(error))
                continue
            mount.warm[prefix.id] = None
            log.info("prefix computed", model=mount.model, prefix=prefix.id, num_tokens=len(tokens))


def _tokens(prefix: WarmPrefix, renderer: Renderer) -> list[int]:
    """What every prompt that begins so has in common. Raises RequestError when the template refuses the messages."""
    if prefix.prompt is not None:
        return renderer.text(prefix.prompt)
    role = "assistant" if prefix.messages[-1].role == "user" else "user"
    one, other = (renderer.chat((*prefix.messages, Message(role=role, content=text))) for text in ("A", "b"))
    num_common = next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    return one[:num_common]
