"""Whose prompt is next: service classes with minimum shares, and inside a class the Virtual Token Counter.

VTC is by Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024, arXiv 2401.00588). A tenant's counter in
a class is the virtual tokens that the whole fleet has served it, over all classes, plus what lifts have added there.
Lifts are kept by class because a tenant that waits long in a low class would otherwise bank credit for a high one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial
from types import MappingProxyType

import msgspec

from inferflux.config.settings import FairnessSettings, MinShareSettings

from .ledger import Ledger, Origin
from .line import Line
from .roster import Roster
from .subjects import Lane, ServiceClass
from .window import Window
from .wire.fleet import Gossip, Hardware, LaneRunning

GENERATION_S = 3600.0
"""Far longer than gossip takes to make good what was lost: after two of them totals are no longer told by epoch."""


class LaneShare(msgspec.Struct, frozen=True):
    """One lane for inspection: prompts waiting, the counter that orders it, and weighted tokens it was served."""

    service_class: str
    tenant: str
    num_waiting: int
    counter: float
    total: float
    weight: float


class FairShare:
    """The order in which one worker process takes prompts of one model, agreed with the others by gossip.

    `now_s` is any clock that all calls share; peers' clocks need not agree with it.
    """

    def __init__(self, model: str, worker: str, epoch: str, settings: FairnessSettings) -> None:
        origin = Origin(worker, epoch)
        self._model = model
        self._settings = settings
        self._min_share = settings.min_share
        self._weights: dict[str, float] = {}
        self._ledger = Ledger(origin)
        self._roster = Roster(origin, settings.gossip_interval_s, settings.share_window_s)
        self._window = Window(settings.share_window_s)
        self._lines = {cls: Line(partial(self.counter, service_class=cls)) for cls in ServiceClass}
        self._last_left: Lane | None = None
        self._to_lift: set[Lane] = set()
        self._last_at = 0.0
        self._generation_began_s: float | None = None

    @property
    def origin(self) -> Origin:
        """The worker process whose order this is."""
        return self._ledger.origin

    def set_weight(self, tenant: str, weight: float) -> None:
        """From now on `weight` times the service of a tenant of weight 1; what was served keeps its old price."""
        if not weight > 0:
            raise ValueError(f"the weight of tenant {tenant!r} must be above 0, not {weight}")
        self._weights[tenant] = weight

    def set_shares(self, min_share: MinShareSettings) -> None:
        self._min_share = min_share

    def set_backlog(self, lane: Lane, num_waiting: int, now_s: float) -> None:
        """How many prompts wait in a lane, those in flight not counted. A lane that starts to wait is lifted."""
        line = self._lines[lane.service_class]
        if num_waiting <= 0:
            if line.leave(lane.tenant):
                self._last_left = lane
                self._to_lift.discard(lane)
            return
        if lane.tenant not in line.waiting:
            if self._roster.whole(now_s):
                self._lift(lane)
            else:
                self._to_lift.add(lane)
        line.join(lane.tenant, num_waiting)

    def num_waiting(self, lane: Lane) -> int:
        """What `set_backlog` said last."""
        return self._lines[lane.service_class].waiting.get(lane.tenant, 0)

    @property
    def num_waiting_in_all(self) -> int:
        """What `set_backlog` said last of every lane."""
        return sum(sum(line.waiting.values()) for line in self._lines.values())

    def choose(self, now_s: float, *, exclude: Collection[Lane] = (), above_batch: bool = False) -> Lane | None:
        """The lane to pull from next, or None when no lane outside `exclude` has a prompt waiting.

        With `above_batch`, None also when the class batch would be next.
        """
        if self._to_lift and self._roster.whole(now_s):
            self._lift_late()
        for service_class in self._class_order(now_s):
            if above_batch and service_class is ServiceClass.BATCH:
                return None
            shut = {lane.tenant for lane in exclude if lane.service_class == service_class}
            line = self._lines[service_class]
            tenant = line.first(shut)
            if tenant is not None:
                line.move_back(tenant)
                return Lane(self._model, service_class, tenant)
        return None

    def charge(self, lane: Lane, *, num_input: int = 0, num_output: int = 0, now_s: float) -> None:
        """Count tokens as they are computed: input that no cache held, and output. Never the same ones twice."""
        cost = self._settings.input_cost * num_input + self._settings.output_cost * num_output
        self._ledger.charge((lane.service_class, lane.tenant), cost, cost / self._weight(lane.tenant))
        self._window.add(lane.service_class, cost, now_s)

    def gossip(
        self,
        now_s: float,
        num_free_slots: int,
        hardware: Hardware,
        running: Mapping[Lane, int] = MappingProxyType({}),
        prefixes: tuple[str, ...] = (),
        num_slots: int = 0,
    ) -> Gossip:
        """The next message to the others: send it every interval, also when nothing happened, unless there is nobody.

        `running` is how many prompts of each lane this worker holds; `prefixes` are beginnings that it has cached,
        `num_slots` is 0 while it takes nothing.
        """
        if self._roster.fell_silent(now_s):
            self._owe_for_gone(now_s)
        # Two messages at one instant would be equal in age with different contents, and their merge order would show.
        self._last_at = max(now_s, self._last_at + 1e-5)
        self._age(now_s)
        told = self._ledger.entries(self._gone() if self._roster.speaks_for_gone(now_s) else None)
        return Gossip(
            worker=self._ledger.origin.worker,
            epoch=self._ledger.origin.epoch,
            model=self._model,
            at=self._last_at,
            num_free_slots=num_free_slots,
            num_slots=num_slots,
            hardware=hardware,
            totals=told.totals,
            lifts=told.lifts,
            generation=self._ledger.generation,
            chapters=told.chapters,
            base=told.base,
            running=tuple(
                LaneRunning(service_class=lane.service_class, tenant=lane.tenant, num_running=num)
                for lane, num in running.items()
            ),
            prefixes=prefixes,
            recent={cls: tokens for cls in ServiceClass if (tokens := self._window.total(cls, now_s))},
            asks=self._roster.asking(now_s),
            num_owed=self._ledger.num_owed,
        )

    def merge(self, gossip: Gossip, now_s: float) -> None:
        """Take in what another worker says: any order, any number of times, none of them essential."""
        sender = Origin(gossip.worker, gossip.epoch)
        if sender == self._ledger.origin:
            return
        if gossip.generation > self._ledger.generation:
            self._generation_began_s = now_s
        self._ledger.merge(gossip)
        self._ledger.leave_to(sender)
        if self._roster.hear(gossip, now_s):
            self._ledger.owe(self._ledger.origin)
            self._owe_for_gone(now_s)

    def has_company(self, now_s: float) -> bool:
        """Whether the others must hear from this worker every interval. While there are none a message now and then is
        enough; whoever comes is to be answered at once."""
        return self._roster.has_company(now_s)

    def rejoin(self, now_s: float) -> None:
        """Call after the connection was lost: asks the others for what was missed, and lifts nobody meanwhile."""
        self._roster.ask(now_s)

    def ready(self, now_s: float) -> bool:
        """Whether the others have been heard: choosing before that works, but starts from an empty history."""
        return self._roster.joined(now_s)

    def free_gpu_slots(self, now_s: float) -> int:
        """Free slots of the GPU workers whose gossip is at most three intervals old."""
        return self._roster.free_gpu_slots(now_s)

    def free_slots_elsewhere(self, now_s: float) -> int:
        """Free slots of the other workers whose gossip is at most three intervals old."""
        return self._roster.free_slots(now_s)

    def peers(self, now_s: float) -> list[Gossip]:
        """What each of the other workers said last, if its gossip is at most three intervals old."""
        return self._roster.gossips(now_s)

    def running_elsewhere(self, now_s: float) -> Counter[Lane]:
        """Prompts that the other workers hold: stored in the stream, but not waiting."""
        held = self._roster.running(now_s)
        return Counter({Lane(self._model, ServiceClass(cls), tenant): num for (cls, tenant), num in held.items()})

    def counter(self, tenant: str, service_class: ServiceClass = ServiceClass.DEFAULT) -> float:
        """Virtual tokens; the smallest among those that wait goes next. It never falls."""
        return self._ledger.virtual(tenant) + self._ledger.lifts.get((service_class, tenant), 0.0)

    def snapshot(self) -> tuple[LaneShare, ...]:
        """Every lane that waits or was ever served, by class and tenant."""
        lanes = {(cls, tenant) for cls, line in self._lines.items() for tenant in line.waiting}
        lanes.update((ServiceClass(cls), tenant) for cls, tenant in self._ledger.accounts())
        return tuple(
            LaneShare(
                service_class=cls,
                tenant=tenant,
                num_waiting=self._lines[cls].waiting.get(tenant, 0),
                counter=self.counter(tenant, cls),
                total=self._ledger.total((cls, tenant)),
                weight=self._weight(tenant),
            )
            for cls, tenant in sorted(lanes)
        )

    def _weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def _class_order(self, now_s: float) -> list[ServiceClass]:
        """Classes with work, highest first, those that are owed their minimum share before all others.

        A class goes first only while both this worker and the fleet have served it too little. When the fleet has,
        some worker has, so no class starves; and workers that act on the same news do not all make up for the same
        debt.
        """
        classes = [cls for cls in ServiceClass if self._lines[cls].waiting]
        if len(classes) < 2:
            return classes
        owed: list[ServiceClass] = []
        mine_above = all_above = 0.0
        for cls in ServiceClass:
            mine = self._window.total(cls, now_s)
            fleet = mine + self._roster.recent(cls, now_s)
            share = self._share(cls)
            if cls in classes and mine < share * mine_above and fleet < share * all_above:
                owed.append(cls)
            mine_above += mine
            all_above += fleet
        return owed + [cls for cls in classes if cls not in owed]

    def _share(self, service_class: ServiceClass) -> float:
        match service_class:
            case ServiceClass.PRIORITY:
                return 0.0
            case ServiceClass.DEFAULT:
                return self._min_share.default
            case ServiceClass.BATCH:
                return self._min_share.batch

    def _lift(self, lane: Lane, not_yet: Collection[str] = ()) -> None:
        """Forfeit the service a lane did not ask for: to the least of those that wait in its class.

        Where nobody waits it is the counter of the last that left the class or the model, whichever is higher: that
        holds nobody back, because whoever comes after is lifted to this lane.
        """
        line = self._lines[lane.service_class]
        least = line.first(not_yet)
        if least is not None:
            level = self.counter(least, lane.service_class)
        else:
            level = self.counter(line.last_left, lane.service_class) if line.last_left else 0.0
            if self._last_left is not None:
                level = max(level, self.counter(self._last_left.tenant, self._last_left.service_class))
        self._ledger.lift((lane.service_class, lane.tenant), level - self._ledger.virtual(lane.tenant))

    def _lift_late(self) -> None:
        """Lift those that came while the own view was incomplete: lifted from it, they would have kept too high a
        counter for good, because it lacked service of their own."""
        late, self._to_lift = self._to_lift, set()
        for lane in sorted(late):
            self._lift(lane, {other.tenant for other in late if other.service_class == lane.service_class})

    def _age(self, now_s: float) -> None:
        """Whose clock is first begins the next generation; the others follow when they hear of it."""
        if self._generation_began_s is None:
            self._generation_began_s = now_s
        elif now_s - self._generation_began_s >= GENERATION_S:
            self._generation_began_s = now_s
            self._ledger.advance(self._ledger.generation + 1)

    def _gone(self) -> list[Origin]:
        return [origin for origin in self._ledger.origins() if self._roster.is_gone(origin)]

    def _owe_for_gone(self, now_s: float) -> None:
        if self._roster.speaks_for_gone(now_s):
            for origin in self._gone():
                self._ledger.owe(origin)
            self._ledger.owe(None)
