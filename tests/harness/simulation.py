"""A fleet without a broker, a model or a clock: the fair-share policy in front of engines that only count tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from itertools import combinations
from typing import NamedTuple

from inferflux.broker.fairshare import FairShare
from inferflux.broker.subjects import Lane, ServiceClass

MODEL = "m"


class Job(NamedTuple):
    """A request as the engine sees it."""

    tenant: str
    num_input: int
    num_output: int
    service_class: ServiceClass = ServiceClass.DEFAULT

    @property
    def lane(self) -> Lane:
        return Lane(MODEL, self.service_class, self.tenant)

    @property
    def num_tokens(self) -> int:
        return self.num_input + self.num_output


class Running:
    """A job in an engine."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.num_left = job.num_output


class Worker:
    """One engine: continuous batching over `num_slots` sequences and `num_kv_tokens` tokens of KV cache."""

    def __init__(self, fair: FairShare, num_slots: int, num_kv_tokens: int) -> None:
        self.fair = fair
        self.num_slots = num_slots
        self.num_kv_tokens = num_kv_tokens
        self.running: list[Running] = []
        self.held: Job | None = None
        self.num_used = 0

    @property
    def num_free_slots(self) -> int:
        return self.num_slots - len(self.running)

    def fits(self, job: Job) -> bool:
        return self.num_used + job.num_tokens <= self.num_kv_tokens


class Spell(NamedTuple):
    """A time in which two tenants both wait: how far the difference of their virtual service has swung."""

    key: tuple[int, int]
    low: float
    high: float


class Simulation:
    """Workers in lock step. Bells reach everybody at once; gossip goes round every `gossip_steps` steps.

    `widest` is the most by which two tenants' service (divided by their weights) ever differed over any interval in
    which both waited throughout; `unreported` the most that any worker ever lacked of the others' service.
    """

    def __init__(self, *, step_s: float = 0.02, tokens_per_step: int = 1, gossip_steps: int = 5) -> None:
        self.now_s = 0.0
        self.step_s = step_s
        self.tokens_per_step = tokens_per_step
        self.gossip_steps = gossip_steps
        self.workers: list[Worker] = []
        self.queues: dict[Lane, deque[tuple[int, Job]]] = {}
        self.weights: dict[str, float] = {}
        self.loses: Callable[[], bool] | None = None
        self.watched: Collection[str] | None = None
        self.served: dict[str, float] = {}
        self.served_by_class: dict[ServiceClass, float] = dict.fromkeys(ServiceClass, 0.0)
        self.num_finished = 0
        self.num_idle_slots = 0
        self.longest_input = 0
        self.widest = 0.0
        self.unreported = 0.0
        self._num_steps = 0
        self._num_jobs = 0
        self._num_served = 0.0
        self._num_reported = 0.0
        self._emptied: dict[str, int] = {}
        self._spells: dict[tuple[str, str], Spell] = {}

    @property
    def num_kv_tokens(self) -> int:
        """M of the bound."""
        return sum(worker.num_kv_tokens for worker in self.workers)

    @property
    def bound(self) -> float:
        """2 max(L_input, 2 M) plus what was unreported, over the smallest weight."""
        lightest = min(self.weights.values(), default=1.0)
        return (2 * max(self.longest_input, 2 * self.num_kv_tokens) + self.unreported) / lightest

    @property
    def num_waiting(self) -> int:
        return sum(len(queue) for queue in self.queues.values())

    def add_worker(self, fair: FairShare, *, num_slots: int, num_kv_tokens: int) -> Worker:
        """A worker that has just started, and learns what waits from the stream."""
        worker = Worker(fair, num_slots, num_kv_tokens)
        for tenant, weight in self.weights.items():
            fair.set_weight(tenant, weight)
        self.workers.append(worker)
        for lane, queue in self.queues.items():
            if queue:
                fair.set_backlog(lane, len(queue), self.now_s)
        return worker

    def set_weight(self, tenant: str, weight: float) -> None:
        self.weights[tenant] = weight
        for worker in self.workers:
            worker.fair.set_weight(tenant, weight)

    def submit(self, job: Job) -> None:
        self.longest_input = max(self.longest_input, job.num_input)
        queue = self.queues.setdefault(job.lane, deque())
        self._num_jobs += 1
        queue.append((self._num_jobs, job))
        if len(queue) == 1:
            for worker in self.workers:
                worker.fair.set_backlog(job.lane, 1, self.now_s)

    def step(self) -> None:
        """One decode step of every worker, then as many prompts as fit."""
        self._num_steps += 1
        self.now_s += self.step_s
        for worker in self.workers:
            self._decode(worker)
        first = self._num_steps % len(self.workers) if self.workers else 0
        for worker in self.workers[first:] + self.workers[:first]:
            self._fill(worker)
        self._watch()
        if self._num_steps % self.gossip_steps == 0:
            self.exchange()

    def exchange(self) -> None:
        """One round of gossip."""
        self._note_unreported()
        for sender in self.workers:
            gossip = sender.fair.gossip(self.now_s, sender.num_free_slots, "cpu")
            for receiver in self.workers:
                if receiver is not sender and not (self.loses and self.loses()):
                    receiver.fair.merge(gossip, self.now_s)

    def _decode(self, worker: Worker) -> None:
        still: list[Running] = []
        for sequence in worker.running:
            job = sequence.job
            num_tokens = min(self.tokens_per_step, sequence.num_left)
            self._charge(worker, job, 0, num_tokens)
            sequence.num_left -= num_tokens
            if sequence.num_left:
                still.append(sequence)
            else:
                worker.num_used -= job.num_tokens
                self.num_finished += 1
        worker.running = still

    def _fill(self, worker: Worker) -> None:
        if not worker.fair.ready(self.now_s):
            return
        while worker.num_free_slots:
            if worker.held is None:
                lane = worker.fair.choose(self.now_s)
                if lane is None:
                    self.num_idle_slots += min(worker.num_free_slots, self.num_waiting)
                    return
                worker.held = self._pull(worker, lane)
            job = worker.held
            if job is None:
                continue
            if not worker.fits(job):
                return
            worker.held = None
            worker.num_used += job.num_tokens
            worker.running.append(Running(job))
            self._charge(worker, job, job.num_input, 0)

    def _pull(self, worker: Worker, lane: Lane) -> Job | None:
        queue = self.queues[lane]
        job = queue.popleft()[1] if queue else None
        if job is not None and not queue:
            self._emptied[lane.tenant] = self._emptied.get(lane.tenant, 0) + 1
        worker.fair.set_backlog(lane, len(queue), self.now_s)
        return job

    def _charge(self, worker: Worker, job: Job, num_input: int, num_output: int) -> None:
        worker.fair.charge(job.lane, num_input=num_input, num_output=num_output, now_s=self.now_s)
        tokens = num_input + 2 * num_output
        self.served[job.tenant] = self.served.get(job.tenant, 0.0) + tokens / self.weights.get(job.tenant, 1.0)
        self.served_by_class[job.service_class] += tokens
        self._num_served += tokens

    def _watch(self) -> None:
        waiting = sorted(
            {lane.tenant for lane, queue in self.queues.items() if queue}
            if self.watched is None
            else {t for t in self.watched if self.queues.get(Lane(MODEL, ServiceClass.DEFAULT, t))}
        )
        for p, q in combinations(waiting, 2):
            difference = self.served.get(p, 0.0) - self.served.get(q, 0.0)
            key = self._emptied.get(p, 0), self._emptied.get(q, 0)
            spell = self._spells.get((p, q))
            if spell is None or spell.key != key:
                spell = Spell(key, difference, difference)
            elif spell.low <= difference <= spell.high:
                continue
            spell = Spell(key, min(spell.low, difference), max(spell.high, difference))
            self._spells[(p, q)] = spell
            self.widest = max(self.widest, spell.high - spell.low)

    def _note_unreported(self) -> None:
        """Without loss it is what was served since the last round; with loss the views have to be asked."""
        lacking = self._num_served - self._num_reported
        self._num_reported = self._num_served
        if self.loses:
            views = (sum(lane.total for lane in worker.fair.snapshot()) for worker in self.workers)
            lacking = self._num_served - min(views)
        self.unreported = max(self.unreported, lacking)
