"""Intake: which prompt a worker pulls next, and when."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from inferflux.broker.broker import Bell, Broker, Delivery, LaneLimits, Subscription
from inferflux.broker.errors import BrokerError
from inferflux.broker.fairshare import FairShare
from inferflux.broker.subjects import Lane, ServiceClass
from inferflux.broker.wire.fleet import Gossip, Hardware
from inferflux.config.logs import get_logger
from inferflux.config.settings import Settings
from inferflux.registry.tenants import Tenants

from .advance import Advance
from .attempt import Attempt
from .gossiper import Gossiper
from .host import ModelHost
from .placement import Accept, Placement, Room

log = get_logger("worker.intake")

RETRY_S = 0.5
RECOUNT_S = 0.1


class Intake:
    """Hears every bell of one model, always, and pulls while the engine has room.

    `host` has the engine that pulled prompts go to; None while there is none. `attempts` are this worker's, of every
    model; `accept` takes a pulled prompt.
    """

    def __init__(
        self,
        model: str,
        broker: Broker,
        fair: FairShare,
        tenants: Tenants,
        settings: Settings,
        *,
        attempts: Callable[[], Iterable[Attempt]],
        accept: Accept,
    ) -> None:
        self.fair = fair
        self.advance = Advance(fair)
        self.model = model
        self.host: ModelHost | None = None
        self._broker = broker
        self._tenants = tenants
        self._settings = settings
        self._attempts = attempts
        self._accept = accept
        self.placement = Placement(model, broker, fair, self.advance, room=self._room, accept=accept)
        self._wake = asyncio.Event()
        self._gossiper = Gossiper(
            model, broker, fair, settings.fairness.gossip_interval_s, tell=self._tell, on_news=self.wake
        )
        self._bells: Subscription | None = None
        self._pulling = True
        self._pulls: dict[asyncio.Task[None], Lane] = {}
        self._placing: dict[asyncio.Task[None], Lane] = {}
        self._num_bells: Counter[Lane] = Counter()
        self._rang_s: dict[Lane, float] = {}
        self._doubt = asyncio.Event()
        self._num_stored: Counter[Lane] = Counter()
        self._resyncing: asyncio.Task[None] | None = None

    @property
    def num_free_slots(self) -> int:
        """Sequences that could start now; none while there is no engine, it hangs, or nothing is pulled any more."""
        room = self._room()
        return 0 if room is None else room.num_free

    @property
    def running(self) -> Counter[Lane]:
        """How many prompts of each lane this worker holds. A hung engine holds none: their leases run out, and whoever
        believed that they were in flight would not look for them."""
        if self._hangs:
            return Counter()
        return Counter(attempt.delivery.lane for attempt in self._mine())

    @property
    def _num_coming(self) -> int:
        """Prompts that are being pulled or placed, of which each may take a slot."""
        return len(self._pulls) + len(self._placing)

    def wake(self) -> None:
        """Something changed: a slot came free, or a prompt came in."""
        self._wake.set()

    def stop(self) -> None:
        """Pull no more."""
        self._pulling = False
        self._wake.set()

    def awaits(self, tenant: str) -> bool:
        """Whether a prompt of this tenant may be waiting, as far as this worker knows."""
        if any(lane.tenant == tenant for lane in (*self._pulls.values(), *self._placing.values())):
            return True
        lanes = self._num_stored.keys() | self._num_bells.keys()
        return any(lane.tenant == tenant and (self._num_stored[lane] or self.fair.num_waiting(lane)) for lane in lanes)

    def ended(self, lane: Lane) -> None:
        """A prompt of this lane is off our hands: a lane that ran as much as it may can go on."""
        if self.fair.num_waiting(lane) == 0 and self._num_stored[lane] > 1:
            self._mark(lane, 1)
        self._wake.set()

    async def join(self) -> None:
        """Begin to listen and to gossip; a newcomer must know what was served before it may choose."""
        self._bells = await self._broker.listen_bells(self.model, self._on_bell)
        await self._gossiper.start()
        await self.placement.join()
        self._resyncing = asyncio.create_task(self._resync_forever(), name="resync")

    async def run(self) -> None:
        """Pull until stopped."""
        while self._pulling:
            self._wake.clear()
            self._start_pulls()
            await self._wake.wait()
        await asyncio.gather(*self._pulls, *self._placing, return_exceptions=True)

    async def leave(self) -> None:
        """Listen and gossip no more."""
        if self._resyncing is not None:
            self._resyncing.cancel()
            await asyncio.wait([self._resyncing])
        await self._gossiper.close()
        if self._bells is not None:
            with contextlib.suppress(BrokerError):
                await self.placement.leave()
                await self._bells.close()

    def _start_pulls(self) -> None:
        """One pull for each free slot, as long as fairness names a lane that is not being emptied already.

        Where no slot is free, classes above batch may take those of batch sequences.
        """
        if self.host is None or not self.fair.ready(time.monotonic()) or self._leaves_to_gpu(self.host):
            return
        while self._pulling:
            above_batch = self.num_free_slots <= self._num_coming
            if above_batch and not self._may_preempt(self.host):
                return
            under_way = Counter(self._pulls.values())
            emptied = {lane for lane, number in under_way.items() if number >= self.fair.num_waiting(lane)}
            lane = self.fair.choose(time.monotonic(), exclude=emptied, above_batch=above_batch)
            if lane is None:
                return
            self._pulls[asyncio.create_task(self._pull(lane))] = lane
            num_running = sum(attempt.delivery.lane == lane for attempt in self._mine() if not attempt.charged)
            self.advance.pay(lane, under_way[lane] + 1 + num_running, time.monotonic())

    def _may_preempt(self, host: ModelHost) -> bool:
        """Whether a batch sequence here would give way, and nobody else has room."""
        if host.stats().batch_is_owed:
            return False
        above = [each.num_slots for each in self._here() if each.delivery.lane.service_class is not ServiceClass.BATCH]
        num_left = host.num_slots - sum(above) - self._num_coming
        return num_left > 0 and not self.fair.free_slots_elsewhere(time.monotonic())

    async def _pull(self, lane: Lane) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            delivery = await self._ask(lane)
            if delivery is not None:
                self._placing[task] = self._pulls.pop(task)
                self._wake.set()
                await self._place(delivery)
        finally:
            self._pulls.pop(task, None)
            self._placing.pop(task, None)
            self.placement.settle()
            self._wake.set()

    async def _place(self, delivery: Delivery) -> None:
        if any(attempt.delivery.seq == delivery.seq for attempt in self._mine()):
            # Its lease ran out here.
            self._accept(delivery, None)
        else:
            await self.placement.place(delivery)

    async def _ask(self, lane: Lane) -> Delivery | None:
        bells = self._num_bells[lane]
        limits = self._tenants.tenant(lane.tenant).lane_limits(self._settings.queue)
        try:
            delivery = await self._broker.pull(lane, limits)
        except BrokerError as error:
            log.warning("pull failed", model=lane.model, tenant=lane.tenant, reason=str(error))
            await asyncio.sleep(RETRY_S)
            return None
        # A bell that rang meanwhile may be for a prompt that this answer does not know of.
        num_rung = self._num_bells[lane] - bells
        if delivery is None and self._doubts(lane, limits):
            self._doubt.set()
        self.fair.set_backlog(lane, max(num_rung, delivery.num_pending if delivery else 0), time.monotonic())
        return delivery

    def _doubts(self, lane: Lane, limits: LaneLimits) -> bool:
        """Whether a pull should have found something: more is known to wait than is being pulled, and the lane may run
        more. A server whose disk is slow says "nothing", too."""
        num_pulls = sum(each == lane for each in self._pulls.values())
        num_running = self.running[lane] + self.fair.running_elsewhere(time.monotonic())[lane]
        return self.fair.num_waiting(lane) > num_pulls and num_running < limits.max_running

    def _leaves_to_gpu(self, host: ModelHost) -> bool:
        """A CPU worker leaves prompts to a GPU worker that has room for them."""
        return host.capacity.hardware == "cpu" and self.fair.free_gpu_slots(time.monotonic()) > 0

    def _on_bell(self, bell: Bell) -> None:
        wait_s = self.placement.wait_s(bell)
        if wait_s:
            asyncio.get_running_loop().call_later(wait_s, self._rang, bell.lane)
        else:
            self._rang(bell.lane)

    def _room(self) -> Room | None:
        host = self.host
        if host is None or not self._pulling or self._hangs:
            return None
        num_used = sum(attempt.num_slots for attempt in self._here())
        return Room(host.num_slots, num_used, host.capacity.hardware, self._num_coming)

    def _rang(self, lane: Lane) -> None:
        self._num_bells[lane] += 1
        self._rang_s[lane] = time.monotonic()
        self._mark(lane, self.fair.num_waiting(lane) + 1)
        self._wake.set()

    def _mark(self, lane: Lane, num_waiting: int) -> None:
        self.fair.set_weight(lane.tenant, self._tenants.tenant(lane.tenant).weight)
        self.fair.set_backlog(lane, num_waiting, time.monotonic())

    async def _resync_forever(self) -> None:
        """Bells are not rung for redeliveries, and may be missed: ask the stream what really waits."""
        connected = True
        while True:
            was_connected, connected = connected, self._broker.connected
            if connected and not was_connected:
                self.fair.rejoin(time.monotonic())
            asked_s = time.monotonic()
            try:
                self._correct(await self._broker.backlog(self.model), asked_s)
            except BrokerError as error:
                log.warning("backlog unknown", model=self.model, reason=str(error))
            interval_s = self._settings.queue.resync_interval_s
            await asyncio.sleep(min(RECOUNT_S, interval_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, interval_s - RECOUNT_S)):
                    await self._doubt.wait()
            self._doubt.clear()

    def _correct(self, stored: Mapping[Lane, int], asked_s: float) -> None:
        """What was stored when `asked_s` had come, less what is in flight, waits. A bell that rang since then, or since
        the gossip that says what others hold, may be for one prompt more: a pull that finds nothing costs less than a
        tenant who waits for the next correction."""
        now_s = time.monotonic()
        in_flight = self.running + self.fair.running_elsewhere(now_s)
        gossiped_s = now_s - 3 * self._settings.fairness.gossip_interval_s
        for lane in (self._num_bells.keys() | self._num_stored.keys()) - stored.keys():
            if self._rang_s.get(lane, 0.0) < asked_s:
                self._mark(lane, 0)
                del self._num_bells[lane]
                self._rang_s.pop(lane, None)
        for lane, num_stored in stored.items():
            rang = self._rang_s.get(lane, 0.0) >= min(asked_s, gossiped_s)
            self._mark(lane, max(int(rang), num_stored - in_flight[lane]))
        self._num_stored = Counter(stored)
        self._wake.set()

    def _tell(self, now_s: float) -> Gossip:
        hardware: Hardware = "cpu" if self.host is None else self.host.capacity.hardware
        num_slots = 0 if self.host is None or not self._pulling else self.host.num_slots
        return self.fair.gossip(now_s, self.num_free_slots, hardware, self.running, self.placement.prefixes, num_slots)

    @property
    def _hangs(self) -> bool:
        return self.host is not None and self.host.stalled_s() >= self._settings.worker.hang_timeout_s

    def _here(self) -> Iterator[Attempt]:
        """Those that the engine has which new prompts go to: an earlier one may still finish others."""
        return (attempt for attempt in self._mine() if attempt.host is self.host)

    def _mine(self) -> Iterator[Attempt]:
        return (attempt for attempt in self._attempts() if attempt.delivery.lane.model == self.model)
