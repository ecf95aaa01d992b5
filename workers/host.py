"""One model on this worker: its engine, its renderer, and the answers that the engine's updates belong to."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.subjects import ServiceClass
from inferflux.broker.wire.fleet import ModelBeat
from inferflux.broker.wire.requests import Failure
from inferflux.config.logs import get_logger
from inferflux.config.metrics import WorkerMetrics
from inferflux.config.settings import FairnessSettings, MinShareSettings, RuntimeSettings, SchedulerSettings

from .answer import Answer
from .backends.backend import Backend, Capacity
from .departures import Departures
from .engine.engine import FAIRNESS, Engine
from .engine.job import EngineStats, Job, Update
from .handover import Step
from .render import Renderer

log = get_logger("worker.host")


_computations = itertools.count(1)


def _nobody() -> None:
    """Waits for a free slot when nobody else does."""


class ModelHost:
    """Lives on the event loop; the engine steps on its own thread. One slot is one sequence that may run.

    `on_free` is called when an answer has ended and its slots are free again. `digest` names the registry entry whose
    settings are in force.
    """

    def __init__(
        self,
        model: str,
        backend: Backend,
        settings: RuntimeSettings,
        metrics: WorkerMetrics,
        fairness: FairnessSettings = FAIRNESS,
        digest: str = "",
    ) -> None:
        self.model = model
        self.backend = backend.name
        self.digest = digest
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.reason: str | None = None
        self.on_free: Callable[[], None] = _nobody
        self._backend = backend
        self._bounds = settings.scheduler
        self._engine = Engine(backend, settings.scheduler, settings.paged_kv, self._from_engine, fairness)
        self._answers: dict[str, Answer] = {}
        self._computing: dict[str, asyncio.Future[Failure | None]] = {}
        self._capacity: Capacity | None = None
        self._renderer: Renderer | None = None
        self._loop = asyncio.get_running_loop()
        self._departures = Departures(self._loop, settings.frame_interval_s, self._take, lambda: self.on_free())
        self._step_time = metrics.step_time.labels(model)
        self._batch_size = metrics.batch_size.labels(model)
        self._seen_steps = -1
        self._seen_s = time.monotonic()
        self._rate = (time.monotonic(), 0, 0.0)

    @property
    def capacity(self) -> Capacity:
        assert self._capacity is not None
        return self._capacity

    @property
    def renderer(self) -> Renderer:
        assert self._renderer is not None
        return self._renderer

    @property
    def num_slots(self) -> int:
        """Sequences that may run at once."""
        bounds = self._bounds
        return min(self.capacity.max_sequences, bounds.max_batch_size, bounds.max_batch_tokens)

    @property
    def progress(self) -> float:
        """The share of the model that is loaded, 0 to 1."""
        return 1.0 if self.state == "ready" else self._backend.progress

    async def start(self) -> None:
        """Load the model off the event loop. Afterwards `state` says how it went."""
        started_s = time.monotonic()
        try:
            self._capacity = await asyncio.to_thread(self._engine.start)
            self._renderer = Renderer(self._backend.tokenizer)
        except Exception as error:
            self.state, self.reason = "failed", str(error)
            log.error("model failed to load", model=self.model, backend=self.backend, reason=str(error))
            return
        self.state = "ready"
        log.info(
            "model ready",
            model=self.model,
            backend=self.backend,
            took_s=round(time.monotonic() - started_s, 3),
            slots=self._capacity.max_sequences,
            context=self._capacity.context_length,
        )

    def text(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        piece = self._backend.tokenizer.piece
        return b"".join(piece(token) for token in tokens).decode("utf-8", "replace")

    def submit(self, name: str, answer: Answer) -> None:
        self._answers[name] = answer
        answer.on_cut = lambda choice: self._engine.cancel(name, choice)
        self._engine.submit(answer.open_jobs)

    def cancel(self, name: str) -> None:
        """Free the request's pages before the next step."""
        if self._answers.pop(name, None) is not None:
            self._engine.cancel(name)

    def leave(self, name: str) -> None:
        """The request is over; should the engine still run it, it stops."""
        answer = self._answers.pop(name, None)
        if answer is not None and answer.open_jobs:
            self._engine.cancel(name)

    def configure(self, bounds: SchedulerSettings, digest: str) -> None:
        """Other bounds from the engine's next step on, as far as it was started for them."""
        self._bounds, self.digest = bounds, digest
        self._engine.configure(bounds)
        self.on_free()

    def clear_cache(self, epoch: int, *, files: bool) -> None:
        """Answer from no prefix that was computed in another epoch; `files` deletes saved ones too."""
        self._engine.clear_cache(epoch, files=files)

    async def compute(self, prompt: Sequence[int], salt: str) -> None:
        """Compute a prompt that nobody asked for, so that its beginning is cached. Raises RequestError."""
        request = f"compute#{next(_computations)}"
        self._computing[request] = done = self._loop.create_future()
        job = Job(
            request=request,
            choice=0,
            prompt=tuple(prompt),
            max_tokens=1,
            salt=salt,
            service_class=ServiceClass.BATCH,
        )
        self._engine.submit([job])
        try:
            error = await done
        finally:
            self._engine.cancel(request)
            del self._computing[request]
        if error is not None:
            raise RequestError(Code(error.code), error.message)

    def set_shares(self, min_share: MinShareSettings) -> None:
        """What each class keeps at least, from the next step on."""
        self._engine.set_batch_share(min_share.batch)

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def stalled_s(self) -> float:
        """Seconds since the engine last made a step while it had work; 0 when it is idle or moving, infinite when it
        cannot compute any more."""
        if self._backend.lost:
            return math.inf
        stats, now_s = self.stats(), time.monotonic()
        if not stats.busy or stats.num_steps != self._seen_steps:
            self._seen_steps, self._seen_s = stats.num_steps, now_s
        return now_s - self._seen_s

    def beat(self) -> ModelBeat:
        """This model's part of the heartbeat."""
        if self._capacity is None:
            return ModelBeat(
                id=self.model,
                backend=self.backend,
                state=self.state,
                reason=self.reason,
                progress=round(self.progress, 2),
                digest=self.digest,
            )
        stats, capacity = self.stats(), self._capacity
        return ModelBeat(
            id=self.model,
            backend=self.backend,
            state=self.state,
            digest=self.digest,
            context_length=capacity.context_length,
            embeddings=capacity.embedding_size > 0,
            num_slots=self.num_slots,
            num_free_slots=stats.num_free_slots,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            num_pages=stats.num_pages,
            num_pages_used=stats.num_pages_used,
            num_pages_cached=stats.num_pages_cached,
            tokens_per_s=self._tokens_per_s(stats),
            prefix_queries=stats.prefix_queries,
            prefix_hits=stats.prefix_hits,
            hardware=capacity.hardware,
        )

    async def close(self) -> None:
        await asyncio.to_thread(self._engine.close)

    def _from_engine(self, updates: list[Update]) -> None:
        self._departures.put(Step(updates, self._engine.last_step_s))

    def _take(self, step: Step) -> list[Answer]:
        """Give each update to its answer. Returns those that something came for."""
        self._batch_size.observe(len(step.updates))
        self._step_time.observe(step.took_s)
        answers = []
        for update in step.updates:
            done = self._computing.get(update.request)
            if done is not None and not done.done() and (update.finish_reason is not None or update.error is not None):
                done.set_result(update.error)
            answer = self._answers.get(update.request)
            if answer is not None:
                answer.push(update)
                answers.append(answer)
        return answers

    def _tokens_per_s(self, stats: EngineStats) -> float:
        since_s, num_before, rate = self._rate
        now_s = time.monotonic()
        if now_s - since_s >= 1.0:
            rate = round((stats.generated_tokens - num_before) / (now_s - since_s), 1)
            self._rate = (now_s, stats.generated_tokens, rate)
        return rate
