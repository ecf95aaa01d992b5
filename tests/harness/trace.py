"""A random life of an engine: arrivals, samples of one prompt, cancels, new bounds, in an order that a seed fixes."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable

from inferflux.broker.subjects import ServiceClass
from inferflux.config.settings import PagedKVSettings, SchedulerSettings
from inferflux.workers.backends.backend import Backend, SamplingParams
from inferflux.workers.engine.engine import Engine
from inferflux.workers.engine.job import Job, Update
from inferflux.workers.engine.scheduler import Scheduler

from .deferred import Deferring
from .engine import TIMEOUT_S, Recorder

GREEDY = SamplingParams(temperature=0.0)
Act = Callable[[Engine], None]


class Trace:
    """What happens before which step. Tokens are bytes, so every backend's vocabulary has them."""

    def __init__(self, seed: int, num_steps: int, *, longest: int = 150, max_tokens: int = 24) -> None:
        draw = random.Random(seed)
        self.jobs: list[Job] = []
        self.cancelled: set[str] = set()
        self._acts: dict[int, list[Act]] = {}
        beginnings = [[draw.randrange(65, 90) for _ in range(64)] for _ in range(3)]
        for step in range(num_steps):
            if draw.random() < 0.12:
                self._arrive(draw, step, draw.choice(beginnings), longest, max_tokens)
            if self.jobs and draw.random() < 0.03:
                self._cancel(step, draw.choice(self.jobs[-6:]).request)
            if draw.random() < 0.01:
                bounds = SchedulerSettings(
                    max_batch_size=draw.randint(1, 8),
                    max_batch_tokens=draw.choice((16, 64, 512)),
                    chunked_prefill_tokens=draw.choice((8, 32, 256)),
                )
                self._acts.setdefault(step, []).append(lambda engine, bounds=bounds: engine.configure(bounds))  # type: ignore[misc]

    def act(self, step: int, engine: Engine) -> int:
        """Returns how much happened."""
        acts = self._acts.pop(step, [])
        for act in acts:
            act(engine)
        return len(acts)

    @property
    def is_over(self) -> bool:
        return not self._acts

    def _arrive(self, draw: random.Random, step: int, beginning: list[int], longest: int, max_tokens: int) -> None:
        tail = [draw.randrange(97, 122) for _ in range(draw.randint(1, longest - len(beginning)))]
        prompt = tuple(beginning + tail) if draw.random() < 0.7 else tuple(tail)
        number, length = len(self.jobs), draw.randint(1, max_tokens)
        service_class = draw.choices(list(ServiceClass), weights=(1, 2, 4))[0]
        jobs = [
            Job(
                request=f"r{number}",
                choice=choice,
                prompt=prompt,
                max_tokens=length,
                sampling=GREEDY,
                ignore_eos=True,
                salt=draw.choice(("", "", "tenant")),
                service_class=service_class,
            )
            for choice in range(draw.choice((1, 1, 1, 3)))
        ]
        self.jobs += jobs
        self._acts.setdefault(step, []).append(lambda engine: engine.submit(jobs))

    def _cancel(self, step: int, request: str) -> None:
        self.cancelled.add(request)
        self._acts.setdefault(step, []).append(lambda engine: engine.cancel(request))


class TracedEngine(Engine):
    """Acts out a trace between its own steps, and checks after each that pages, slots and backend agree."""

    def __init__(self, trace: Trace, backend: Backend, settings: SchedulerSettings, paged_kv: PagedKVSettings) -> None:
        self.recorder = Recorder()
        self.num_endings: Counter[tuple[str, int]] = Counter()
        self.problems: list[str] = []
        self.num_turns = 0
        self.num_acts_in_flight = 0
        self._trace = trace
        self._rest = threading.Event()
        super().__init__(backend, settings, paged_kv, self._record)

    def _record(self, updates: list[Update]) -> None:
        for update in updates:
            self.num_endings[update.request, update.choice] += bool(update.finish_reason or update.error)
        self.recorder(updates)

    def _wait(self, scheduler: Scheduler) -> bool:
        return not self._inbox.closed if not self._trace.is_over else super()._wait(scheduler)

    def _turn(self, scheduler: Scheduler) -> None:
        self._trace.act(self.num_turns, self)
        self.num_turns += 1
        super()._turn(scheduler)
        try:
            scheduler.check_integrity(self._backend.num_computed)
        except AssertionError as error:
            self.problems.append(f"turn {self.num_turns}: {error}")
        if self._trace.is_over and not (scheduler.running or scheduler.waiting or self._inbox):
            self._rest.set()

    def act_during_steps(self, device: Deferring) -> None:
        """Of every four turns' acts, one's come when the step before is launched and one's when it is waited for."""

        def at(moment: int) -> None:
            if self.num_turns % 4 == moment:
                self.num_acts_in_flight += self._trace.act(self.num_turns, self)

        device.on_launch, device.on_result = lambda: at(1), lambda: at(2)

    def play(self) -> None:
        """Until every request has ended or was cancelled. Fails when anything is left or was inconsistent."""
        self.start()
        try:
            for job in self._trace.jobs:
                if job.request not in self._trace.cancelled:
                    choice = self.recorder.wait(job.request, job.choice)
                    assert choice.error is None, choice.error
            assert self._rest.wait(TIMEOUT_S), self.stats()
            self.check_integrity()
            stats = self.stats()
            assert not self.problems, self.problems[:3]
            assert (stats.num_running, stats.num_waiting, stats.num_pages_used) == (0, 0, 0), stats
            assert max(self.num_endings.values()) == 1
        finally:
            self.close()
