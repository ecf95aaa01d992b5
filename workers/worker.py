"""The worker: it hosts models, pulls what fairness owes, and answers for every prompt it holds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any

from inferflux.broker.broker import Broker, Delivery
from inferflux.broker.errors import BrokerError
from inferflux.broker.fairshare import FairShare
from inferflux.broker.prefix import prefix_digest
from inferflux.broker.subjects import OWNER_TENANT, RequestKey
from inferflux.broker.wire import Claim
from inferflux.config.logs import get_logger
from inferflux.config.settings import Settings
from inferflux.registry.control import Control

from .answer import End, cancelled
from .attempt import Attempt
from .host import ModelHost
from .intake import Intake
from .meter import Meter
from .outbox import SWEEP_INTERVAL_S
from .reader import PromptReader

log = get_logger("worker")


class Worker:
    """Holds prompts as attempts, each with a task of its own. `run` returns once drained."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        hosts: Sequence[ModelHost],
        control: Control,
        reader: PromptReader,
        meter: Meter,
    ) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}"
        self.epoch = uuid.uuid4().hex[:12]
        self.started = time.time()
        self.hosts = list(hosts)
        self.hung: set[str] = set()
        self._settings = settings
        self._broker = broker
        self._control = control
        self._reader = reader
        self._meter = meter
        self._intakes: dict[str, Intake] = {}
        self._attempts: dict[RequestKey, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._purges: dict[RequestKey, asyncio.TimerHandle] = {}
        self._stopping = asyncio.Event()

    @property
    def draining(self) -> bool:
        return self._stopping.is_set()

    @property
    def num_attempts(self) -> int:
        return len(self._attempts)

    def stop(self) -> None:
        """Begin to drain: pull no more, finish what runs, hand back what does not finish in time."""
        self._stopping.set()
        for intake in self._intakes.values():
            intake.stop()

    async def run(self) -> None:
        """Serve until stopped, then drain."""
        cancels = await self._broker.listen_cancels(self._on_cancel)
        chores = (self._sweep_forever(), self._extend_forever())
        self._control.start()
        await self._control.wait_listed(self._settings.broker.timeout_s)
        background = [asyncio.create_task(chore) for chore in chores]
        try:
            serving = [asyncio.create_task(self._serve(host)) for host in self.hosts]
            await asyncio.gather(*serving)
            await self._stopping.wait()
            if not self.hung:
                await self._drain()
        finally:
            for purge in self._purges.values():
                purge.cancel()
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._control.close()
            with contextlib.suppress(BrokerError):
                await cancels.close()
            await asyncio.gather(*(host.close() for host in self.hosts if host.model not in self.hung))

    async def _serve(self, host: ModelHost) -> None:
        intake = Intake(
            host,
            self._broker,
            FairShare(host.model, self.id, self.epoch, self._settings.fairness),
            self._control.tenants,
            self._settings,
            attempts=self._attempts.values,
            accept=lambda delivery: self._accept(delivery, host),
        )
        self._intakes[host.model] = intake
        self._control.fairness.share_with(intake.fair.set_shares)
        self._control.fairness.share_with(host.set_shares)
        host.on_free = intake.wake
        await intake.join()
        try:
            await host.start()
            if host.state == "ready" and not self.draining:
                await intake.run()
        finally:
            await intake.leave()

    def _accept(self, delivery: Delivery, host: ModelHost) -> None:
        task = self._reader.read(delivery)
        running = self._attempts.get(task.key)
        if running is not None:
            if running.delivery.seq == delivery.seq:
                # Our lease ran out while we were still at work; the claim is ours, so the new lease is too.
                running.delivery = delivery
            else:
                log.warning("request id in use", request=task.key.request, owner=task.key.owner)
                self._spawn(delivery.ack())
            return
        if task.prompt is not None and (prefix := prefix_digest(task.prompt, task.salt)) is not None:
            self._intakes[host.model].remember(prefix)
        attempt = Attempt(task, host, self._broker, self._settings, self.id)
        self._attempts[task.key] = attempt
        self._spawn(self._run(attempt))

    async def _run(self, attempt: Attempt) -> None:
        try:
            over = await attempt.run()
        except BrokerError as error:
            # The prompt stays in the queue, and comes back when its lease has run out.
            log.warning("attempt given up", request=attempt.key.request, attempt=attempt.seq, reason=str(error))
            over = False
        except Exception as error:
            log.error("attempt failed", error=error, request=attempt.key.request, attempt=attempt.seq)
            over = False
        finally:
            self._charge(attempt)
            self._meter.attempt_ended(attempt)
            if self._attempts.get(attempt.key) is attempt:
                del self._attempts[attempt.key]
            self._intakes[attempt.delivery.lane.model].ended(attempt.delivery.lane)
        if over:
            self._purge_later(attempt.key)

    def _on_cancel(self, key: RequestKey) -> None:
        attempt = self._attempts.get(key)
        if attempt is not None:
            attempt.stop(End.CANCELLED)
        elif key.owner.startswith(OWNER_TENANT):
            tenant = key.owner.removeprefix(OWNER_TENANT)
            if any(intake.awaits(tenant) for intake in self._intakes.values()):
                self._spawn(self._cancel_unclaimed(key))

    async def _cancel_unclaimed(self, key: RequestKey) -> None:
        """A direct publisher cannot write claims: the first worker to hear of it cancels what nobody runs yet."""
        claim = Claim(worker=self.id, state="cancelled", num_attempts=0, at=time.time())
        with contextlib.suppress(BrokerError):
            seq = await self._broker.put_claim(key, claim, expected_seq=0)
            # The claim stays until the prompt has been pulled: whoever pulls it finds it cancelled, and purges.
            await self._broker.put_terminal(key, cancelled(key.request, seq), fence=seq)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            for attempt in list(self._attempts.values()):
                attempt.outbox.sweep()
                self._charge(attempt)

    def _charge(self, attempt: Attempt) -> None:
        num_input, num_output = attempt.take_charges()
        intake = self._intakes.get(attempt.delivery.lane.model)
        if intake is not None and (num_input or num_output):
            intake.advance.charge(attempt.delivery.lane, num_input, num_output, time.monotonic())

    async def _extend_forever(self) -> None:
        """Leases last as long as the engine makes progress: a hung engine loses its prompts to other workers."""
        interval_s, hang_s = self._settings.queue.lease_s / 3, self._settings.worker.hang_timeout_s
        while True:
            await asyncio.sleep(interval_s)
            stalled = {host.model: host.stalled_s() for host in self.hosts if host.state == "ready"}
            for attempt in list(self._attempts.values()):
                if stalled.get(attempt.delivery.lane.model, 0.0) < hang_s:
                    with contextlib.suppress(BrokerError):
                        await attempt.delivery.extend()
            for model, stalled_s in stalled.items():
                if stalled_s >= hang_s:
                    log.error("engine hangs; this worker ends", model=model, stalled_s=round(stalled_s, 1))
                    self.hung.add(model)
            if self.hung:
                await self._abandon()
                return

    async def _abandon(self) -> None:
        """A hung engine cannot be stopped, only its process: give every prompt back as it is, at once. The claims
        stay `running`, so that a prompt which hangs each engine it meets is given up in the end."""
        for attempt in list(self._attempts.values()):
            with contextlib.suppress(BrokerError):
                await attempt.delivery.release()
        self.stop()

    async def _drain(self) -> None:
        tasks = {task for task in self._tasks if not task.done()}
        log.info("draining", num_attempts=len(self._attempts))
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.worker.drain_timeout_s)
        for attempt in list(self._attempts.values()):
            attempt.stop(End.RELEASED)
        left = {task for task in self._tasks if not task.done()}
        if left:
            await asyncio.wait(left, timeout=self._settings.broker.timeout_s)

    async def _purge(self, key: RequestKey) -> None:
        with contextlib.suppress(BrokerError):
            await self._broker.purge_tape(key)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _purge_later(self, key: RequestKey) -> None:
        def purge() -> None:
            del self._purges[key]
            self._spawn(self._purge(key))

        if (earlier := self._purges.get(key)) is not None:
            earlier.cancel()
        self._purges[key] = asyncio.get_running_loop().call_later(self._settings.tape.window_s, purge)
