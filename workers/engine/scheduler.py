"""The scheduler: which tokens of which sequences the next step computes. Pure policy: no clock, no backend."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from collections.abc import Sequence as Items
from heapq import merge
from operator import attrgetter

from inferflux.broker.subjects import ServiceClass
from inferflux.broker.wire.requests import Failure
from inferflux.config.settings import SchedulerSettings

from ..backends.backend import Capacity, Chunk, Sample
from .job import Job
from .kv_cache import KVCache
from .limits import max_length, refusal
from .pace import SHORT_TOKENS, Pace
from .plan import Placement, Plan
from .sequence import CLASS_RANKS, Sequence

_by_rank = attrgetter("rank")
_BATCH = CLASS_RANKS[ServiceClass.BATCH]


class Scheduler:
    """Running and waiting sequences, both in order of class, then arrival.

    There is no prefill phase and no decode phase: every step closes the gap between computed and known tokens, those
    sequences first that lack one token only. When pages run out, the last sequence in that order gives its own back
    and waits; it is computed again from its own tokens, minus what the prefix cache still holds. The same happens to
    a batch sequence whose slot a higher class needs.
    """

    def __init__(self, settings: SchedulerSettings, capacity: Capacity) -> None:
        self.settings = settings
        self.capacity = capacity
        self.cache = KVCache(capacity)
        self.slots = self.cache.slots
        self.pool = self.cache.pool
        self.max_length = max_length(capacity)
        self.pace = Pace()
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.num_preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._num_arrivals = 0
        self._batch_goes_first = False

    @property
    def has_work(self) -> bool:
        """Whether there is something to compute now; what waits for a saved prefix is not."""
        return bool(self.running) or any(not sequence.is_restoring for sequence in self.waiting)

    @property
    def max_running(self) -> int:
        """Sequences that may run at once."""
        return min(self.settings.max_batch_size, self._max_batch_tokens, self.capacity.max_sequences)

    @property
    def _max_batch_tokens(self) -> int:
        return min(self.settings.max_batch_tokens, self.capacity.max_batch_tokens)

    def refusal(self, job: Job) -> Failure | None:
        """Why this job could never run here, if so."""
        return refusal(job, self.capacity)

    def add(self, job: Job) -> Sequence:
        """Queue a job that `refusal` had nothing against."""
        self._num_arrivals += 1
        sequence = Sequence(job, self._num_arrivals)
        insort(self.waiting, sequence, key=_by_rank)
        return sequence

    def cancel(self, request: str, choice: int | None = None) -> list[Sequence]:
        """Drop the request's sequences, or one choice's, and free their pages; returns what was dropped."""
        dropped = [
            sequence
            for sequence in (*self.running, *self.waiting)
            if sequence.job.request == request and choice in (None, sequence.job.choice)
        ]
        for sequence in dropped:
            self.finish(sequence)
        return dropped

    def finish(self, sequence: Sequence) -> None:
        """The sequence has ended, for whatever reason: free its pages, which stay cached."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self.cache.release(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Like `finish`, after a failure: what the sequence's slot holds is not to be trusted."""
        slot = sequence.slot
        self.finish(sequence)
        if slot is not None:
            self.cache.clear(slot)

    def clear_cache(self, epoch: int) -> None:
        """Forget every cached prefix. What runs goes on; what comes is cached under the new epoch."""
        self.cache.forget_everything(epoch)
        for sequence in self.waiting:
            sequence.page_hashes = []

    def expire(self, now_s: float) -> list[Sequence]:
        """Drop what has never run and may not begin any more; returns what was dropped. Times are Unix times."""
        late = [each for each in self.waiting if not each.was_admitted and each.job.may_not_start(now_s)]
        for sequence in late:
            self.finish(sequence)
        return late

    def make_room(self, *, batch_is_owed: bool) -> None:
        """Take slots from batch sequences, the latest first, for higher classes that wait.

        Not while batch is owed: then the first that waits goes before the higher classes.
        """
        self._batch_goes_first = batch_is_owed
        if batch_is_owed:
            return
        num_free = min(self.slots.num_idle, self.max_running - len(self.running))
        for sequence in tuple(self.waiting):
            if sequence.rank[0] == _BATCH:
                return
            if self.cache.prefix_of(sequence) is None:
                continue
            if num_free > 0:
                num_free -= 1
                continue
            if not self.running or self.running[-1].rank[0] != _BATCH:
                return
            self._preempt(self.running[-1])

    def look_ahead(self) -> None:
        """Prepare for placing those who wait. Changes nothing that a batch being computed depends on."""
        for sequence in self.waiting:
            if not (sequence.page_hashes or sequence.job.embed):
                self.cache.name_pages(sequence)

    def candidates(self) -> list[Sequence]:
        """Those who wait and could start now, were it for slots alone."""
        return self.waiting[: max(0, min(self.slots.num_idle, self.max_running - len(self.running)))]

    def schedule(self) -> Plan:
        """Choose the next step's batch. Empty only when there is nothing to compute."""
        chosen: dict[Sequence, int] = {}
        placements: list[Placement] = []
        num_preemptions = self.num_preemptions
        budget = self._max_batch_tokens
        budget -= self._schedule_decodes(chosen, budget)
        room = budget
        if chosen:
            budget = min(budget, self.settings.chunked_prefill_tokens)
            room = self._room(len(chosen), budget)
        # Pages that somebody has just given back are not for a newcomer.
        self._schedule_prompts(chosen, placements, budget, room, may_admit=num_preemptions == self.num_preemptions)
        return Plan(placements, list(chosen), [self._chunk(sequence, count) for sequence, count in chosen.items()])

    def commit(self, plan: Plan, samples: Items[Sample]) -> list[tuple[Sequence, Sample]]:
        """Record what the step computed; returns the samples that were asked for, with their sequences."""
        drawn = []
        for sequence, chunk, sample in zip(plan.sequences, plan.batch, samples, strict=True):
            sequence.num_computed += len(chunk.tokens)
            if chunk.embed:
                drawn.append((sequence, sample))
                continue
            if sequence.num_computed // self.pool.page_size > sequence.num_sealed:
                self.cache.seal(sequence)
            if sample.token is not None:
                sequence.tokens.append(sample.token)
                drawn.append((sequence, sample))
        return drawn

    def check_integrity(self, num_computed: Callable[[int], int] | None = None) -> None:
        """Raises AssertionError when pool, slots and sequences disagree, or `num_computed` of a slot with them: what
        the backend itself believes that it holds."""
        self.cache.check_integrity(self.running)
        assert all(not sequence.block_table and sequence.slot is None for sequence in self.waiting)
        for sequence in self.running:
            assert sequence.num_computed < len(sequence.tokens) <= self.max_length, "a sequence is past its end"
        if num_computed is not None:
            self.cache.check_backend(self.running, num_computed)

    def _schedule_decodes(self, chosen: dict[Sequence, int], budget: int) -> int:
        """Give a token to each sequence that lacks one only; returns how many tokens that takes."""
        for sequence in tuple(self.running):
            # Its slot is gone when it has just made room for one before it.
            lacks_one = sequence.slot is not None and sequence.num_remaining == 1
            if lacks_one and len(chosen) < budget and self._grow(sequence):
                chosen[sequence] = 1
        return len(chosen)

    def _room(self, num_decodes: int, budget: int) -> int:
        """How much of the budget long prompts may take beside decodes."""
        room = self.pace.room(num_decodes, len(self.running) - num_decodes + len(self.candidates()))
        return budget if room is None else min(budget, room)

    def _schedule_prompts(
        self, chosen: dict[Sequence, int], placements: list[Placement], budget: int, room: int, *, may_admit: bool
    ) -> None:
        """Spend the budget on the others in order, whether they run already or begin now; no more than `room` on
        what is long."""
        num_reserved = 0
        for sequence in self._prompts_in_order():
            if room <= 0:
                return
            if sequence.is_restoring:
                num_reserved += 1
                continue
            if sequence.slot is None:
                num_free = min(self.slots.num_idle, self.max_running - len(self.running))
                # A slot is kept for what comes back from a disk, unless nothing else would be computed meanwhile.
                may_admit = may_admit and num_free > (num_reserved if self.running else 0)
                prefix = self.cache.prefix_of(sequence) if may_admit else None
                if prefix is None:
                    continue
                may_admit = self._place(sequence, prefix, placements)
                if not may_admit:
                    continue
            # An embedding is one chunk whatever its length, and ends the step.
            count = sequence.num_remaining
            if not sequence.job.embed:
                count = min(count, budget if count <= SHORT_TOKENS else room)
            chosen[sequence] = count
            budget -= count
            room = min(room - count, budget)

    def _prompts_in_order(self) -> list[Sequence]:
        prefilling = [sequence for sequence in self.running if sequence.num_remaining > 1]
        order = list(merge(prefilling, self.waiting, key=_by_rank))
        if self._batch_goes_first:
            first = next((sequence for sequence in order if sequence.rank[0] == _BATCH), None)
            if first is not None:
                order.remove(first)
                order.insert(0, first)
        return order

    def _grow(self, sequence: Sequence) -> bool:
        """Get the page for a sequence's next token, from the last in order if need be; False when that is itself.

        Only decoding sequences grow, and in order, so nothing that this step has chosen is ever the last.
        """
        if len(sequence.block_table) * self.pool.page_size >= len(sequence.tokens):
            return True
        while (pages := self.pool.allocate(1)) is None:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.block_table += pages
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.cache.release(sequence)
        sequence.num_computed = sequence.num_sealed = 0
        sequence.was_sought = False
        self.num_preemptions += 1
        insort(self.waiting, sequence, key=_by_rank)

    def _place(self, sequence: Sequence, prefix: list[int], placements: list[Placement]) -> bool:
        """Move a waiting sequence into a slot; False when pages are short."""
        placement = self.cache.place(sequence, prefix)
        if placement is None:
            return False
        placements.append(placement)
        if not sequence.was_admitted:
            sequence.was_admitted = True
            sequence.num_cached = min(placement.num_tokens, len(sequence.job.prompt))
            if not sequence.job.embed:
                self.prefix_queries += len(sequence.tokens)
                self.prefix_hits += placement.num_tokens
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_by_rank)
        return True

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        assert sequence.slot is not None
        start, tokens, job = sequence.num_computed, sequence.tokens, sequence.job
        wants_token = start + count == len(tokens) and not job.embed
        return Chunk(
            slot=sequence.slot,
            start=start,
            tokens=tokens[start : start + count],
            block_table=sequence.block_table,
            sampling=job.sampling if wants_token else None,
            history=tokens if wants_token else (),
            num_prompt_tokens=len(job.prompt),
            embed=job.embed,
        )
