"""The engine: one thread that steps the scheduler and the backend, and the calls that reach it from other threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from concurrent.futures import Future

from inferflux.broker.errors import Code
from inferflux.broker.wire import Failure, failure
from inferflux.config.logs import get_logger
from inferflux.config.settings import PagedKVSettings, SchedulerSettings

from ..backends.backend import Backend, Capacity
from .job import EngineStats, Job, Update
from .plan import Plan
from .scheduler import Scheduler
from .sequence import Sequence
from .transcript import Transcript

log = get_logger("engine")


class Engine:
    """Continuous batching over one backend.

    `on_updates` is called on the engine's thread, once a step, with everything that the step gave. Every submitted
    job ends in exactly one update with a finish reason or an error, unless it is cancelled: then nothing more comes.
    """

    def __init__(
        self,
        backend: Backend,
        settings: SchedulerSettings,
        paged_kv: PagedKVSettings,
        on_updates: Callable[[list[Update]], None],
    ) -> None:
        if paged_kv.nvme_path is not None:
            log.warning("pages are not offloaded in this version", nvme_path=paged_kv.nvme_path)
        self._backend = backend
        self._settings = settings
        self._on_updates = on_updates
        self._inbox: deque[Items[Job] | str] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._started: Future[Capacity] = Future()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._scheduler: Scheduler | None = None
        self._transcripts: dict[Sequence, Transcript] = {}
        self._updates: list[Update] = []
        self._failure: Failure | None = None
        self._num_steps = 0
        self._last_step_s = 0.0
        self._prompt_tokens = 0
        self._generated_tokens = 0

    def start(self) -> Capacity:
        """Load the model and start stepping; returns when it is ready. Raises what the backend's `start` raises."""
        self._thread.start()
        return self._started.result()

    def submit(self, jobs: Items[Job]) -> None:
        """Queue the choices of one prompt; any thread. Raises RuntimeError when the engine does not run."""
        if self._closing or not self._started.done():
            raise RuntimeError("the engine does not run")
        self._post(tuple(jobs))

    def cancel(self, request: str) -> None:
        """Drop a request before the next step; any thread. No error when it is unknown, has ended, or nothing runs."""
        self._post(request)

    def stats(self) -> EngineStats:
        """A snapshot; any thread."""
        scheduler = self._scheduler
        if scheduler is None:
            return EngineStats()
        num_running, num_waiting = len(scheduler.running), len(scheduler.waiting)
        max_sequences = min(scheduler.capacity.max_sequences, scheduler.settings.max_batch_size)
        return EngineStats(
            num_steps=self._num_steps,
            busy=scheduler.has_work or bool(self._inbox),
            num_running=num_running,
            num_waiting=num_waiting,
            num_free_slots=max(0, max_sequences - num_running - num_waiting),
            num_pages=scheduler.pool.num_pages,
            num_pages_used=scheduler.pool.num_used,
            num_pages_cached=scheduler.pool.num_cached,
            num_preemptions=scheduler.num_preemptions,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            last_step_s=self._last_step_s,
        )

    def close(self) -> None:
        """Stop after the current step and unload the model. What still ran ends without an update."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _post(self, message: Items[Job] | str) -> None:
        with self._wake:
            self._inbox.append(message)
            self._wake.notify()

    def _main(self) -> None:
        try:
            try:
                capacity = self._backend.start()
                self._scheduler = Scheduler(self._settings, capacity)
            except BaseException as error:
                self._started.set_exception(error)
                return
            self._started.set_result(capacity)
            while self._wait(self._scheduler):
                self._turn(self._scheduler)
        finally:
            self._backend.close()

    def _wait(self, scheduler: Scheduler) -> bool:
        """Sleep while there is nothing to do. False when the engine is to close."""
        with self._wake:
            while not (self._closing or self._inbox or scheduler.has_work):
                self._wake.wait()
            return not self._closing

    def _turn(self, scheduler: Scheduler) -> None:
        """Take what was posted, compute one step, report."""
        began = time.perf_counter()
        try:
            while self._inbox:
                self._take(scheduler, self._inbox.popleft())
            if scheduler.has_work:
                self._step(scheduler)
                self._num_steps += 1
                self._last_step_s = time.perf_counter() - began
        except Exception as error:
            self._reset(scheduler, error)
        if self._updates:
            updates, self._updates = self._updates, []
            try:
                self._on_updates(updates)
            except Exception as error:
                log.error("updates were not taken", error=error, num_updates=len(updates))

    def _take(self, scheduler: Scheduler, message: Items[Job] | str) -> None:
        if isinstance(message, str):
            for sequence in scheduler.cancel(message):
                del self._transcripts[sequence]
            return
        for job in message:
            refusal = self._failure or scheduler.refusal(job)
            if refusal is not None:
                self._updates.append(Update(request=job.request, choice=job.choice, index=0, error=refusal))
                continue
            self._prompt_tokens += len(job.prompt)
            transcript = Transcript(job, self._backend.tokenizer, scheduler.max_length)
            if transcript.finish_reason is not None:
                self._updates.append(transcript.conclude())
            else:
                self._transcripts[scheduler.add(job)] = transcript

    def _step(self, scheduler: Scheduler) -> None:
        plan = scheduler.schedule()
        assert plan.batch, "there is work and nothing was scheduled"
        try:
            for placement in plan.placements:
                if placement.source is None:
                    self._backend.trim(placement.slot, placement.num_tokens)
                else:
                    self._backend.fork(placement.source, placement.slot, placement.num_tokens)
            samples = self._backend.run(plan.batch)
        except Exception as error:
            self._discard(scheduler, plan, error)
            return
        for sequence, sample in scheduler.commit(plan, samples):
            transcript = self._transcripts[sequence]
            self._updates.append(transcript.push(sample, sequence.num_cached))
            self._generated_tokens += sample.token is not None
            if transcript.finish_reason is not None:
                scheduler.finish(sequence)
                del self._transcripts[sequence]

    def _discard(self, scheduler: Scheduler, plan: Plan, error: Exception) -> None:
        """End the sequences of a batch that the backend could not compute; the others go on."""
        log.error("a batch failed", error=error, num_sequences=len(plan.sequences))
        for chunk in plan.batch:
            self._backend.trim(chunk.slot, 0)
        for sequence in plan.sequences:
            scheduler.discard(sequence)
            self._fail(sequence, self._transcripts.pop(sequence), error)

    def _reset(self, scheduler: Scheduler, error: Exception) -> None:
        """End everything and begin anew; when the backend does not even empty its slots, every later job fails too."""
        log.error("the engine starts over", error=error, num_sequences=len(self._transcripts))
        for sequence, transcript in self._transcripts.items():
            self._fail(sequence, transcript, error)
        self._transcripts.clear()
        self._scheduler = Scheduler(scheduler.settings, scheduler.capacity)
        try:
            for slot in range(scheduler.capacity.max_sequences):
                self._backend.trim(slot, 0)
        except Exception as second:
            log.error("the backend does not recover", error=second)
            self._failure = self._describe(second)

    def _fail(self, sequence: Sequence, transcript: Transcript, error: Exception) -> None:
        job = sequence.job
        self._updates.append(
            Update(request=job.request, choice=job.choice, index=transcript.num_tokens, error=self._describe(error))
        )

    def _describe(self, error: Exception) -> Failure:
        return failure(Code.ENGINE_ERROR, f"the {self._backend.name} backend failed: {error}")
