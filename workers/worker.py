"""The worker: it hosts models, pulls what fairness owes, and answers for every prompt it holds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from inferflux.broker.broker import Broker, Delivery
from inferflux.broker.errors import BrokerError
from inferflux.broker.fairshare import FairShare
from inferflux.broker.prefix import prefix_digest
from inferflux.broker.subjects import OWNER_TENANT, RequestKey
from inferflux.broker.wire.requests import Claim
from inferflux.config.logs import get_logger
from inferflux.config.settings import MinShareSettings, Settings
from inferflux.registry.control import Control

from .answer import End, cancelled
from .attempt import Attempt
from .hardware import hardware_of
from .host import ModelHost
from .intake import Intake
from .meter import Meter
from .mount import Mount, nobody
from .outbox import SWEEP_INTERVAL_S
from .reader import PromptReader

log = get_logger("worker")


class Worker:
    """Holds prompts as attempts, each with a task of its own. `run` returns once drained.

    `hosts` are served from the start; a registrar mounts others while it runs, whose engines `on_ready` hears of.
    """

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
        self.hardware = hardware_of(settings)
        self.mounts: dict[str, Mount] = {}
        self.hung: set[str] = set()
        self._settings = settings
        self._broker = broker
        self._control = control
        self._reader = reader
        self._meter = meter
        self._first_hosts = list(hosts)
        self._min_share = settings.fairness.min_share
        self._fair: dict[str, FairShare] = {}
        self._attempts: dict[RequestKey, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._purges: dict[RequestKey, asyncio.TimerHandle] = {}
        self._stopping = asyncio.Event()
        self.on_ready: Callable[[Mount], None] = nobody
        for host in hosts:
            self.mount(host.model).coming = host

    @property
    def hosts(self) -> list[ModelHost]:
        """Every engine there is, of all models."""
        return [host for mount in tuple(self.mounts.values()) for host in mount.hosts]

    @property
    def draining(self) -> bool:
        return self._stopping.is_set()

    @property
    def num_attempts(self) -> int:
        return len(self._attempts)

    def stop(self) -> None:
        """Begin to drain: pull no more, finish what runs, hand back what does not finish in time."""
        self._stopping.set()
        for mount in self.mounts.values():
            mount.intake.stop()

    def mount(self, model: str) -> Mount:
        """Where engines of a model can be put."""
        mount = self.mounts.get(model)
        if mount is not None:
            return mount
        # What was served counts as long as this process lives: a model that comes back goes on with it.
        fair = self._fair.get(model)
        if fair is None:
            fair = self._fair[model] = FairShare(model, self.id, self.epoch, self._settings.fairness)
        else:
            fair.rejoin(time.monotonic())
        intake = Intake(
            model,
            self._broker,
            fair,
            self._control.tenants,
            self._settings,
            attempts=self._attempts.values,
            accept=self._accept,
        )
        if self.draining:
            intake.stop()
        mount = self.mounts[model] = Mount(intake, self._broker, self._attempts.values)
        mount.on_ready = self.on_ready
        mount.set_shares(self._min_share)
        return mount

    def unmount(self, mount: Mount) -> None:
        """The model is gone from here; its engines are closed."""
        del self.mounts[mount.model]

    async def run(self) -> None:
        """Serve until stopped, then drain."""
        cancels = await self._broker.listen_cancels(self._on_cancel)
        chores = (self._sweep_forever(), self._extend_forever())
        self._control.fairness.share_with(self._share)
        self._control.start()
        await self._control.wait_listed(self._settings.broker.timeout_s)
        background = [asyncio.create_task(chore) for chore in chores]
        try:
            await asyncio.gather(*(self.mounts[host.model].put(host) for host in self._first_hosts))
            await self._stopping.wait()
            await asyncio.gather(*(mount.stop() for mount in self.mounts.values()))
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
            mounts = [mount for mount in self.mounts.values() if mount.model not in self.hung]
            await asyncio.gather(*(mount.leave() for mount in self.mounts.values()))
            await asyncio.gather(*(mount.close() for mount in mounts))

    def _accept(self, delivery: Delivery, rival: str | None) -> None:
        mount = self.mounts[delivery.lane.model]
        assert mount.host is not None, "a prompt was pulled for an engine that is not there"
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
            mount.intake.placement.remember(prefix)
        attempt = Attempt(task, mount.host, self._broker, self._settings, self.id, self._control, rival)
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
            mount = self.mounts[attempt.delivery.lane.model]
            mount.intake.ended(attempt.delivery.lane)
            mount.ended()
        if over:
            self._purge_later(attempt.key)

    def _on_cancel(self, key: RequestKey) -> None:
        attempt = self._attempts.get(key)
        if attempt is not None:
            attempt.stop(End.CANCELLED)
        elif key.owner.startswith(OWNER_TENANT):
            tenant = key.owner.removeprefix(OWNER_TENANT)
            if any(mount.intake.awaits(tenant) for mount in self.mounts.values()):
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
        if num_input or num_output:
            intake = self.mounts[attempt.delivery.lane.model].intake
            intake.advance.charge(attempt.delivery.lane, num_input, num_output, time.monotonic())

    async def _extend_forever(self) -> None:
        """Leases last as long as the engine makes progress: a hung engine loses its prompts to other workers."""
        interval_s, hang_s = self._settings.queue.lease_s / 3, self._settings.worker.hang_timeout_s
        while True:
            await asyncio.sleep(interval_s)
            stalled = {host: host.stalled_s() for host in self.hosts if host.state == "ready"}
            for attempt in list(self._attempts.values()):
                if stalled.get(attempt.host, 0.0) < hang_s:
                    with contextlib.suppress(BrokerError):
                        await attempt.delivery.extend()
            for host, stalled_s in stalled.items():
                if stalled_s >= hang_s:
                    log.error("engine hangs; this worker ends", model=host.model, stalled_s=round(stalled_s, 1))
                    self.hung.add(host.model)
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

    def _share(self, min_share: MinShareSettings) -> None:
        self._min_share = min_share
        for mount in self.mounts.values():
            mount.set_shares(min_share)

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
