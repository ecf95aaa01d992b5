"""The restorer: moves prefixes between the backend and the offload. Lives on the engine's thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial

from inferflux.config.logs import get_logger

from ..backends.backend import Backend, PageStore
from .breakeven import BreakEven
from .kv_cache import KVCache
from .offload import Offload
from .prefix_chains import PrefixChains
from .scheduler import Scheduler
from .sequence import Sequence

log = get_logger("engine.offload")

MIN_TOKENS = 64
"""A prefix shorter than this is computed again rather than kept in a file."""


class Reading:
    """A saved prefix on its way back, and the sequences that wait for it until `deadline_s`."""

    def __init__(self, chain: tuple[bytes, ...], deadline_s: float) -> None:
        self.chain = chain
        self.deadline_s = deadline_s
        self.sequences: list[Sequence] = []
        self.state: bytes | None = None

    def add(self, sequence: Sequence) -> None:
        sequence.is_restoring = True
        self.sequences.append(sequence)

    def try_again(self) -> None:
        """There was no room for it: look for it once more."""
        for sequence in self.sequences:
            sequence.was_sought = False


class Restorer:
    """Saves what a slot is about to lose, or what pages do that all slots share, and brings a prefix back before the
    sequence that wants it is placed.

    `wake` is called from another thread when `settle` has something to do. No failure here reaches a request: it is
    computed instead.
    """

    def __init__(self, offload: Offload, backend: Backend, page_size: int, wake: Callable[[], None]) -> None:
        self._offload = offload
        self._backend = backend
        self._store = backend if isinstance(backend, PageStore) else None
        self._page_size = page_size
        self._wake = wake
        self._min_pages = -(-MIN_TOKENS // page_size)
        self._break_even = BreakEven()
        self._readings: dict[bytes, Reading] = {}
        self._arrived: deque[tuple[Reading, float]] = deque()

    @property
    def has_arrivals(self) -> bool:
        return bool(self._arrived)

    @property
    def deadline_s(self) -> float | None:
        """When somebody will have waited long enough."""
        return min((reading.deadline_s for reading in self._readings.values()), default=None)

    def watch(self, cache: KVCache) -> None:
        """From now on, hear what shared pages lose."""
        if self._store is not None:
            cache.chains = PrefixChains(cache.pool.match)

    def computed(self, num_tokens: int, took_s: float) -> None:
        """A batch with part of a prompt in it was computed."""
        self._break_even.observe_prefill(num_tokens, took_s)

    def seek(self, scheduler: Scheduler, now_s: float) -> None:
        """Look on the disk for those who could start now, once for each."""
        for sequence in scheduler.candidates():
            if not (sequence.was_sought or sequence.job.embed):
                cached = scheduler.cache.prefix_of(sequence)
                if cached is not None and self._has_room(scheduler, sequence, len(cached)):
                    sequence.was_sought = True
                    self._seek(sequence, len(cached), now_s)
        if self._readings:
            self._join(scheduler)

    def _has_room(self, scheduler: Scheduler, sequence: Sequence, num_cached: int) -> bool:
        """Whether there are pages for it. Without them it cannot start, and would be sought again in every step."""
        pool = scheduler.pool
        return self._store is None or pool.num_pages_for(len(sequence.tokens)) - num_cached <= pool.num_available

    def _seek(self, sequence: Sequence, num_cached: int, now_s: float) -> None:
        chain = sequence.usable_hashes(self._page_size)
        if len(chain) - num_cached < self._min_pages:
            return
        found = self._offload.find(chain)
        if found is None or found[1] - num_cached < self._min_pages:
            self._offload.missed()
            return
        saved, num_pages = found
        num_tokens = (num_pages - num_cached) * self._page_size
        if not self._break_even.prefers_reading(saved.num_bytes, num_tokens):
            self._offload.missed()
            return
        reading = self._readings.get(saved.key)
        if reading is None:
            deadline_s = now_s + self._break_even.patience_s(num_tokens)
            reading = self._readings[saved.key] = Reading(tuple(chain[:num_pages]), deadline_s)
            self._offload.fetch(saved, partial(self._arrive, reading))
        reading.add(sequence)

    def _join(self, scheduler: Scheduler) -> None:
        """Others whose next page is on its way wait for it too."""
        for sequence in scheduler.waiting:
            if sequence.is_restoring or sequence.was_sought or sequence.job.embed:
                continue
            cached = scheduler.cache.prefix_of(sequence)
            if cached is None:
                continue
            wanted = sequence.usable_hashes(self._page_size)[len(cached) : len(cached) + 1]
            for reading in self._readings.values():
                if wanted and wanted[0] in reading.chain:
                    reading.add(sequence)
                    break

    def settle(self, scheduler: Scheduler, now_s: float) -> None:
        """Put what has arrived into a slot, and let go of those who have waited long enough."""
        while self._arrived:
            reading, took_s = self._arrived.popleft()
            state = reading.state
            if state is not None and took_s:
                self._break_even.observe_read(len(state), took_s)
            if state is not None and any(sequence in scheduler.waiting for sequence in reading.sequences):
                if self._store is None:
                    self._restore_slot(scheduler, reading, state)
                else:
                    self._restore_pages(self._store, scheduler.cache, reading, state)
            self._release(reading)
        for reading in [each for each in self._readings.values() if each.deadline_s <= now_s]:
            self._offload.missed()
            self._release(reading)

    def save(self, slot: int, chain: tuple[bytes, ...]) -> None:
        """Keep what an idle slot holds, before something else takes its place."""
        self._keep(chain, lambda: self._backend.save(slot, len(chain) * self._page_size))

    def save_evicted(self, cache: KVCache) -> None:
        """Keep what pages held that have been given away, before something is written to them."""
        store = self._store
        if store is not None and cache.chains is not None:
            for lost in cache.chains.take_lost():
                self._keep(lost.chain, partial(store.read_pages, lost.pages))

    def clear(self) -> None:
        """Forget what was saved; what is on its way comes to nobody."""
        for reading in tuple(self._readings.values()):
            self._release(reading)
        self._offload.clear()

    def close(self, scheduler: Scheduler, timeout_s: float) -> None:
        """Keep what is cached, most recently used first, as far as time allows."""
        deadline_s = time.monotonic() + timeout_s
        cache, store = scheduler.cache, self._store
        for slot in reversed(scheduler.slots.idle):
            if not self._offload.flush(max(0.0, deadline_s - time.monotonic())):
                break
            self.save(slot, tuple(scheduler.slots.content(slot)))
        if store is not None and cache.chains is not None:
            for chain in cache.chains.longest(cache.pool.cached):
                if not self._offload.flush(max(0.0, deadline_s - time.monotonic())):
                    break
                pages = cache.pool.match(chain)
                if len(pages) == len(chain):
                    self._keep(chain, partial(store.read_pages, pages))
        self._offload.close(max(0.0, deadline_s - time.monotonic()))

    def _keep(self, chain: tuple[bytes, ...], read: Callable[[], bytes]) -> None:
        if len(chain) < self._min_pages or not self._offload.wants(chain):
            return
        try:
            self._offload.store(chain, read())
        except Exception as error:
            log.error("a prefix could not be saved", error=error)

    def _arrive(self, reading: Reading, state: bytes | None, took_s: float) -> None:
        reading.state = state
        self._arrived.append((reading, took_s))
        self._wake()

    def _restore_pages(self, store: PageStore, cache: KVCache, reading: Reading, state: bytes) -> None:
        reserved = cache.reserve(reading.chain)
        if reserved is None:
            reading.try_again()
            return
        table, pages = reserved
        self.save_evicted(cache)
        try:
            fits = store.write_pages(pages, state, len(table))
        except Exception as error:
            log.error("a saved prefix could not be loaded", error=error)
            fits = False
        if fits:
            cache.name(reading.chain, table, pages)
            return
        log.warning("a saved prefix does not fit the backend", num_tokens=len(reading.chain) * self._page_size)
        self._offload.missed()
        cache.pool.release(table + pages)

    def _restore_slot(self, scheduler: Scheduler, reading: Reading, state: bytes) -> None:
        placement = scheduler.cache.adopt(reading.chain)
        if placement is None:
            reading.try_again()
            return
        if placement.lost:
            self.save(placement.slot, placement.lost)
        try:
            fits = self._backend.load(placement.slot, state, placement.num_tokens)
        except Exception as error:
            log.error("a saved prefix could not be loaded", error=error, slot=placement.slot)
            self._backend.trim(placement.slot, 0)
            fits = False
        if not fits:
            log.warning("a saved prefix does not fit the backend", num_tokens=placement.num_tokens)
            self._offload.missed()
            scheduler.cache.clear(placement.slot)

    def _release(self, reading: Reading) -> None:
        """Whether it came or not, its sequences can be placed. A second arrival of the same prefix may be under way."""
        for key, each in tuple(self._readings.items()):
            if each is reading:
                del self._readings[key]
        for sequence in reading.sequences:
            sequence.is_restoring = False
        reading.sequences = []
