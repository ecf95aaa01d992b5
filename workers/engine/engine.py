"""The engine: one thread that steps the scheduler and the backend, and the calls that reach it from other threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from concurrent.futures import Future
from pathlib import Path

from inferflux.broker.errors import Code
from inferflux.broker.wire.requests import Failure, failure
from inferflux.config.logs import get_logger
from inferflux.config.settings import FairnessSettings, PagedKVSettings, SchedulerSettings

from ..backends.backend import Backend, Capacity, PageStore
from .class_share import ClassShare
from .inbox import CacheEpoch, Drop, Inbox, Message
from .job import EngineStats, Job, Update
from .offload import Offload, OffloadStats
from .plan import Plan
from .restorer import Restorer
from .runner import Runner
from .scheduler import Scheduler
from .sequence import Sequence
from .transcript import Transcript

log = get_logger("engine")

IDLE_CHECK_S = 1.0
CLOSE_S = 3.0
CHECK_TIMEOUT_S = 60.0
FAIRNESS = FairnessSettings()


class Engine:
    """Continuous batching over one backend.

    `on_updates` is called on the engine's thread, once a step, with everything that the step gave; when a device
    computes while the host is free, as soon as the next step is launched. Every submitted job ends in exactly one
    update with a finish reason or an error, unless it is cancelled: then nothing more comes.
    `fairness` says how much of this engine batch sequences keep when higher classes want their slots.
    """

    def __init__(
        self,
        backend: Backend,
        settings: SchedulerSettings,
        paged_kv: PagedKVSettings,
        on_updates: Callable[[list[Update]], None],
        fairness: FairnessSettings = FAIRNESS,
    ) -> None:
        self._backend = backend
        self._runner = Runner(backend)
        self._settings = settings
        self._paged_kv = paged_kv
        self._on_updates = on_updates
        self._share = ClassShare(
            fairness.min_share.batch,
            fairness.share_window_s,
            input_cost=fairness.input_cost,
            output_cost=fairness.output_cost,
        )
        self._inbox = Inbox()
        self._started: Future[Capacity] = Future()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._scheduler: Scheduler | None = None
        self._offload: Offload | None = None
        self._restorer: Restorer | None = None
        self._was_checked = True
        self._batch_is_owed = False
        self._transcripts: dict[Sequence, Transcript] = {}
        self._updates: list[Update] = []
        self._failure: Failure | None = None
        self._num_steps = 0
        self.last_step_s = 0.0  # how long the newest step took
        self._prompt_tokens = 0
        self._generated_tokens = 0

    def start(self) -> Capacity:
        """Load the model and start stepping; returns when it is ready. Raises what the backend's `start` raises."""
        self._thread.start()
        return self._started.result()

    def submit(self, jobs: Items[Job]) -> None:
        """Queue the choices of one prompt; any thread. Raises RuntimeError when the engine does not run."""
        self._check_runs()
        self._inbox.post(tuple(jobs))

    def cancel(self, request: str, choice: int | None = None) -> None:
        """Drop a request, or one choice, before the next step; any thread. No error when it is unknown, has ended, or
        nothing runs."""
        self._inbox.post(Drop(request, choice))

    def configure(self, settings: SchedulerSettings) -> None:
        """Other bounds from the next step on; any thread. They are capped by what the backend was started with.

        What runs beyond a smaller `max_batch_size` runs on; nothing is added until there is room again.
        """
        self._inbox.post(settings)

    def clear_cache(self, epoch: int, *, files: bool) -> None:
        """Start from no prefix of another epoch, from the next step on; any thread. `files` deletes saved ones too."""
        self._inbox.post(CacheEpoch(epoch, files))

    def set_batch_share(self, min_share: float) -> None:
        """What batch keeps of what the classes above it are served, from the next step on; any thread."""
        self._share.min_share = min_share

    def check_integrity(self) -> None:
        """Compare pages, slots, sequences and the backend between two steps; any thread. Raises AssertionError,
        RuntimeError when the engine does not run, or TimeoutError when it makes no steps."""
        self._check_runs()
        checked: Future[None] = Future()
        self._inbox.post(checked)
        checked.result(CHECK_TIMEOUT_S)

    def stats(self) -> EngineStats:
        """A snapshot; any thread."""
        scheduler = self._scheduler
        if scheduler is None:
            return EngineStats()
        num_running, num_waiting = len(scheduler.running), len(scheduler.waiting)
        return EngineStats(
            num_steps=self._num_steps,
            busy=bool(num_running or num_waiting or self._inbox),
            num_running=num_running,
            num_waiting=num_waiting,
            num_free_slots=max(0, scheduler.max_running - num_running - num_waiting),
            num_pages=scheduler.pool.num_pages,
            num_pages_used=scheduler.pool.num_used,
            num_pages_cached=scheduler.pool.num_cached,
            num_preemptions=scheduler.num_preemptions,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            batch_is_owed=self._batch_is_owed,
            offload=OffloadStats() if self._offload is None else self._offload.stats(),
        )

    def close(self) -> None:
        """Stop after the current step and unload the model. What still ran ends without an update."""
        self._inbox.close()
        if self._thread.ident is not None:
            self._thread.join()

    def _check_runs(self) -> None:
        if self._inbox.closed or not self._started.done():
            raise RuntimeError("the engine does not run")

    def _main(self) -> None:
        try:
            try:
                capacity = self._runner.start()
                self._scheduler = Scheduler(self._settings, capacity)
                self._open_offload(capacity, self._scheduler)
            except BaseException as error:
                self._started.set_exception(error)
                return
            self._started.set_result(capacity)
            while self._wait(self._scheduler):
                self._turn(self._scheduler)
            self._report()
            if self._restorer is not None:
                self._restorer.close(self._scheduler, CLOSE_S)
        finally:
            self._backend.close()
            for message in self._inbox.take():
                if isinstance(message, Future):
                    message.set_exception(RuntimeError("the engine does not run"))

    def _open_offload(self, capacity: Capacity, scheduler: Scheduler) -> None:
        if self._paged_kv.nvme_path is None:
            return
        if capacity.pages_shared and not isinstance(self._backend, PageStore):
            log.info("this backend has nothing to offload", backend=self._backend.name)
            return
        self._offload = Offload(Path(self._paged_kv.nvme_path), self._paged_kv.nvme_bytes, capacity.fingerprint)
        self._offload.start()
        self._restorer = Restorer(self._offload, self._backend, capacity.page_size, self._inbox.wake)
        self._restorer.watch(scheduler.cache)

    def _wait(self, scheduler: Scheduler) -> bool:
        """Sleep while there is nothing to do. False when the engine is to close."""
        restorer = self._restorer
        return self._inbox.wait(
            lambda: scheduler.has_work or (restorer is not None and restorer.has_arrivals), self._patience_s
        )

    def _patience_s(self) -> float | None:
        """How long to sleep at most."""
        deadline_s = None if self._restorer is None else self._restorer.deadline_s
        if deadline_s is not None:
            return max(0.0, deadline_s - time.monotonic())
        return None if self._was_checked else IDLE_CHECK_S

    def _turn(self, scheduler: Scheduler) -> None:
        """Take what was posted, compute one step, report."""
        began = time.perf_counter()
        try:
            for message in self._inbox.take():
                self._take(scheduler, message)
            self._prepare(scheduler)
            if scheduler.has_work:
                self._step(scheduler)
                self._num_steps += 1
                self.last_step_s = time.perf_counter() - began
                self._was_checked = False
            elif not (self._was_checked or scheduler.waiting):
                self._was_checked = True
                scheduler.check_integrity(self._backend.num_computed)
        except Exception as error:
            self._reset(scheduler, error)
            self._report()
        # A device that is about to be given the next step should not wait for this.
        if not (self._runner.defers and scheduler.has_work):
            self._report()

    def _report(self) -> None:
        """Pass on what is known."""
        if self._updates:
            updates, self._updates = self._updates, []
            try:
                self._on_updates(updates)
            except Exception as error:
                log.error("updates were not taken", error=error, num_updates=len(updates))

    def _take(self, scheduler: Scheduler, message: Message) -> None:
        if not isinstance(message, tuple):
            self._report()  # it was computed before: after a cancel nothing comes
        match message:
            case Drop():
                for sequence in scheduler.cancel(message.request, message.choice):
                    del self._transcripts[sequence]
            case SchedulerSettings():
                scheduler.settings = message
                log.info("new bounds", max_running=scheduler.max_running, max_batch_tokens=message.max_batch_tokens)
            case CacheEpoch():
                scheduler.clear_cache(message.number)
                if message.files and self._restorer is not None:
                    self._restorer.clear()
                log.info("prefix cache cleared", epoch=message.number, files=message.files)
            case Future():
                try:
                    scheduler.check_integrity(self._backend.num_computed)
                except AssertionError as error:
                    message.set_exception(error)
                else:
                    message.set_result(None)
            case _:
                for job in message:
                    self._add(scheduler, job)

    def _add(self, scheduler: Scheduler, job: Job) -> None:
        refusal = self._failure or scheduler.refusal(job)
        if refusal is not None:
            self._updates.append(Update(request=job.request, choice=job.choice, index=0, error=refusal))
            return
        self._prompt_tokens += len(job.prompt)
        transcript = Transcript(job, self._backend.tokenizer, scheduler.max_length)
        if transcript.finish_reason is not None:
            self._updates.append(transcript.conclude())
        else:
            self._transcripts[scheduler.add(job)] = transcript

    def _prepare(self, scheduler: Scheduler) -> None:
        """Before a step: end what may not begin any more, make room for higher classes, look for saved prefixes."""
        for sequence in scheduler.expire(time.time()):
            late = failure(Code.QUEUE_TIMEOUT, "the request waited longer than its deadline allows")
            self._fail(sequence, self._transcripts.pop(sequence), late)
        now_s = time.monotonic()
        self._batch_is_owed = self._share.batch_is_owed(now_s)
        scheduler.make_room(batch_is_owed=self._batch_is_owed)
        if self._restorer is not None:
            self._restorer.settle(scheduler, now_s)
            self._restorer.seek(scheduler, now_s)

    def _step(self, scheduler: Scheduler) -> None:
        plan = scheduler.schedule()
        assert plan.batch, "there is work and nothing was scheduled"
        try:
            samples = self._runner.run(scheduler, plan, self._restorer, lambda: self._meanwhile(scheduler))
        except Exception as error:
            self._discard(scheduler, plan, error)
            return
        now_s = time.monotonic()
        for sequence, sample in scheduler.commit(plan, samples):
            transcript = self._transcripts[sequence]
            num_input = 0 if transcript.num_tokens else len(sequence.job.prompt) - sequence.num_cached
            num_output = sample.token is not None
            self._share.charge(sequence.job.service_class, num_input=num_input, num_output=num_output, now_s=now_s)
            self._updates.append(transcript.push(sample, sequence.num_cached))
            self._generated_tokens += num_output
            if transcript.finish_reason is not None:
                scheduler.finish(sequence)
                del self._transcripts[sequence]

    def _meanwhile(self, scheduler: Scheduler) -> None:
        """While a device computes: report the step before, and get to know what has arrived.

        A cancel, and what else could touch the batch, waits in the inbox until the step is over.
        """
        self._report()
        for jobs in self._inbox.take_jobs():
            self._take(scheduler, jobs)
        scheduler.look_ahead()
        if self._restorer is not None:
            self._restorer.seek(scheduler, time.monotonic())

    def _discard(self, scheduler: Scheduler, plan: Plan, error: Exception) -> None:
        """End the sequences of a batch that the backend could not compute; the others go on."""
        log.error("a batch failed", error=error, num_sequences=len(plan.sequences))
        for chunk in plan.batch:
            self._backend.trim(chunk.slot, 0)
        for sequence in plan.sequences:
            scheduler.discard(sequence)
            self._fail(sequence, self._transcripts.pop(sequence), self._describe(error))

    def _reset(self, scheduler: Scheduler, error: Exception) -> None:
        """End everything and begin anew; when the backend does not even empty its slots, every later job fails too."""
        log.error("the engine starts over", error=error, num_sequences=len(self._transcripts))
        for sequence, transcript in self._transcripts.items():
            self._fail(sequence, transcript, self._describe(error))
        self._transcripts.clear()
        self._scheduler = Scheduler(scheduler.settings, scheduler.capacity)
        if self._restorer is not None:
            self._restorer.watch(self._scheduler.cache)
        self._scheduler.clear_cache(scheduler.cache.epoch)
        try:
            for slot in range(scheduler.capacity.max_sequences):
                self._backend.trim(slot, 0)
        except Exception as second:
            log.error("the backend does not recover", error=second)
            self._failure = self._describe(second)

    def _fail(self, sequence: Sequence, transcript: Transcript, error: Failure) -> None:
        job = sequence.job
        self._updates.append(Update(request=job.request, choice=job.choice, index=transcript.num_tokens, error=error))

    def _describe(self, error: Exception) -> Failure:
        return failure(Code.ENGINE_ERROR, f"the {self._backend.name} backend failed: {error}")
