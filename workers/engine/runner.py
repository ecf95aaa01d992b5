"""The runner: has the backend compute what was planned, and learns what that takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Items

from ..backends.backend import Backend, Capacity, Chunk, Launcher, Sample
from .plan import Plan
from .restorer import Restorer
from .scheduler import Scheduler


class Runner:
    """One step of the backend at a time. Lives on the engine's thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._launcher: Launcher | None = None

    @property
    def defers(self) -> bool:
        """Whether the host is free while a batch is computed."""
        return self._launcher is not None

    def start(self) -> Capacity:
        """Load the model. Raises what the backend's `start` raises."""
        capacity = self._backend.start()
        if isinstance(self._backend, Launcher) and self._backend.defers:
            self._launcher = self._backend
        return capacity

    def run(
        self, scheduler: Scheduler, plan: Plan, restorer: Restorer | None, meanwhile: Callable[[], None]
    ) -> list[Sample]:
        """Put prefixes where they are needed, then compute the batch. `meanwhile` is called if the host is free then.

        Raises whatever the backend fails with.
        """
        if restorer is not None:
            restorer.save_evicted(scheduler.cache)
        for placement in plan.placements:
            if placement.lost and restorer is not None:
                restorer.save(placement.slot, placement.lost)
            if placement.source is None:
                self._backend.trim(placement.slot, placement.num_tokens)
            else:
                self._backend.fork(placement.source, placement.slot, placement.num_tokens)
        began = time.perf_counter()
        samples = self._compute(plan.batch, meanwhile)
        took_s = time.perf_counter() - began
        prompts = [len(chunk.tokens) for chunk in plan.batch if len(chunk.tokens) > 1]
        scheduler.pace.observe(len(plan.batch) - len(prompts), sum(prompts), took_s)
        if restorer is not None and prompts:
            restorer.computed(sum(len(chunk.tokens) for chunk in plan.batch), took_s)
        return samples

    def _compute(self, batch: Items[Chunk], meanwhile: Callable[[], None]) -> list[Sample]:
        if self._launcher is None:
            return self._backend.run(batch)
        launched = self._launcher.launch(batch)
        try:
            meanwhile()
        finally:
            samples = launched.result()
        return samples
