"""Cancelling: a terminal claim by compare-and-set, then the terminal frame, the hint and the prompt's removal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from inferflux.broker.broker import Broker
from inferflux.broker.errors import BrokerError, BrokerUnavailable, ClaimLost
from inferflux.broker.subjects import RequestKey
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.requests import Claim, Failure, Frame
from inferflux.config.logs import get_logger

from .idempotency import free

log = get_logger("api.cancel")

MAX_RACES = 10
RETRY_S = 0.25
GIVE_UP_S = 60.0


class Order(msgspec.Struct, frozen=True):
    """What to cancel and why. `prompt_seq` is None where it is unknown whether the prompt was stored; a terminal
    frame at or before `seen_seq` in the tape is ruled out."""

    key: RequestKey
    prompt_seq: int | None
    failure: Failure
    seen_seq: int = 0


class Canceller:
    """Ends requests as this replica, wherever they are: queued, running, or just finishing. Their tapes are purged
    `window_s` later, as those of answers are."""

    def __init__(self, broker: Broker, name: str, window_s: float) -> None:
        self._broker = broker
        self._name = name
        self._window_s = window_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._purges: set[asyncio.TimerHandle] = set()

    def start(self, order: Order, unless: Callable[[], Awaitable[bool]] | None = None) -> None:
        """Cancel in the background, `unless` that is true; the caller may itself be cancelled at once."""
        self._spawn(self._persist(order, unless))

    def free(self, key: RequestKey) -> None:
        """Free the idempotency key of a request that somebody else has ended, in the background."""
        self._spawn(free(self._broker, key))

    async def drain(self, timeout_s: float) -> None:
        """Wait for what was started; what takes longer is given up, and what was to be purged is left over."""
        while self._purges:
            self._purges.pop().cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def cancel(self, order: Order, *, unless_running: bool = False) -> bool:
        """True when the request is over. With `unless_running`, False when a worker has claimed it."""
        for _ in range(MAX_RACES):
            last = await self._broker.last_claim(order.key)
            seq, claim = last if last is not None else (0, None)
            if claim is not None and claim.state == "cancelled":
                await self._finish(order, seq)
                return True
            if unless_running and claim is not None and claim.state == "running":
                return False
            mine = Claim(
                worker=self._name,
                state="cancelled",
                prompt=order.prompt_seq or (claim.prompt if claim is not None else 0),
                num_attempts=claim.num_attempts if claim is not None else 0,
                at=time.time(),
            )
            try:
                seq = await self._broker.put_claim(order.key, mine, expected_seq=seq)
            except ClaimLost:
                continue
            await self._finish(order, seq)
            return True
        raise BrokerUnavailable(f"the claim changed {MAX_RACES} times while it was being cancelled")

    async def _finish(self, order: Order, seq: int) -> None:
        await self._broker.send_cancel(order.key)
        # The claim is cancelled, so no other terminal frame can come; but the last attempt's may have come just before.
        tape = await self._broker.read_tape(order.key, after_seq=order.seen_seq)
        if tape.end is None:
            frame = Frame(id=order.key.request, attempt=seq, error=order.failure)
            try:
                await self._broker.put_terminal(order.key, encode(frame), fence=seq)
                await free(self._broker, order.key)
            except ClaimLost:
                log.warning("cancelled claim was replaced", request=order.key.request)
        if order.prompt_seq is not None:
            await self._broker.drop_prompt(order.prompt_seq)
            # Where it is not known to be gone, whoever pulls it must find the claim.
            self._purge_later(order.key)

    def _purge_later(self, key: RequestKey) -> None:
        def due() -> None:
            self._purges.discard(timer)
            self._spawn(self._purge(key))

        timer = asyncio.get_running_loop().call_later(self._window_s, due)
        self._purges.add(timer)

    async def _purge(self, key: RequestKey) -> None:
        try:
            await self._broker.purge_tape(key)
        except BrokerError as error:
            log.warning("tape left to expire", request=key.request, reason=str(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _persist(self, order: Order, unless: Callable[[], Awaitable[bool]] | None) -> None:
        started_s = time.monotonic()
        while True:
            try:
                if unless is not None and await unless():
                    return
                await self.cancel(order)
            except BrokerError as error:
                if time.monotonic() - started_s > GIVE_UP_S:
                    log.error("cancel given up", request=order.key.request, reason=str(error))
                    return
                await asyncio.sleep(RETRY_S)
            else:
                log.info(
                    "cancelled",
                    request=order.key.request,
                    code=order.failure.code,
                    took_s=round(time.monotonic() - started_s, 3),
                )
                return
