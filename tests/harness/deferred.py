"""Devices that compute while the host goes on: a batch is done when the test lets it be, and nothing is done before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from inferflux.workers.backends.backend import Chunk, Sample

from .streams import PagesBackend, StreamsBackend

TIMEOUT_S = 60.0


class Deferring(StreamsBackend):
    """Mixed into a backend. A batch is computed when its result is asked for, by what its chunks say then; any other
    call before that fails.

    `on_launch` is called on the engine's thread when a batch is queued, `on_result` when the engine has nothing left
    to do but to wait for it.
    """

    defers = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.on_launch: Callable[[], None] = lambda: None
        self.on_result: Callable[[], None] = lambda: None
        self.batches: list[list[int]] = []
        self._in_flight: Sequence[Chunk] | None = None

    def launch(self, batch: Sequence[Chunk]) -> Deferring:
        self.check_rests()
        self.batches.append([len(chunk.tokens) for chunk in batch])
        self.on_launch()
        self._in_flight = batch
        return self

    def result(self) -> list[Sample]:
        batch, self._in_flight = self._in_flight, None
        assert batch is not None, "there is no result to wait for"
        self.on_result()
        return super().run(batch)

    def check_rests(self) -> None:
        assert self._in_flight is None, "the backend is called while it computes"

    def run(self, batch: Sequence[Chunk]) -> list[Sample]:
        raise AssertionError("a batch was waited for from the beginning")

    def fork(self, source: int, target: int, num_tokens: int) -> None:
        self.check_rests()
        super().fork(source, target, num_tokens)

    def trim(self, slot: int, num_tokens: int) -> None:
        self.check_rests()
        super().trim(slot, num_tokens)

    def save(self, slot: int, num_tokens: int) -> bytes:
        self.check_rests()
        return super().save(slot, num_tokens)

    def load(self, slot: int, data: bytes, num_tokens: int) -> bool:
        self.check_rests()
        return super().load(slot, data, num_tokens)

    def num_computed(self, slot: int) -> int:
        self.check_rests()
        return super().num_computed(slot)


class DeferredStreams(Deferring):
    """One stream for each slot."""


class DeferredPages(Deferring, PagesBackend):
    """Pages for all slots, as a GPU has them."""

    def read_pages(self, pages: Sequence[int]) -> bytes:
        self.check_rests()
        return super().read_pages(pages)

    def write_pages(self, pages: Sequence[int], data: bytes, first: int) -> bool:
        self.check_rests()
        return super().write_pages(pages, data, first)


class Gate:
    """Holds a device's steps back. `entered` once a step: the engine waits for its result now."""

    def __init__(self, device: Deferring) -> None:
        self._entered = threading.Semaphore(0)
        self._open = threading.Semaphore(0)
        self.failure: Exception | None = None
        device.on_result = self._pass

    def _pass(self) -> None:
        self._entered.release()
        assert self._open.acquire(timeout=TIMEOUT_S)
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def wait(self) -> None:
        """Until the engine waits for a step."""
        assert self._entered.acquire(timeout=TIMEOUT_S)

    def let_go(self, count: int = 1) -> None:
        self._open.release(count)
