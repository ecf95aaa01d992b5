from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inferflux.broker.errors import Code
from inferflux.broker.subjects import ServiceClass
from inferflux.config.settings import SchedulerSettings
from inferflux.workers.backends.backend import Capacity, Sample, SamplingParams
from inferflux.workers.engine.job import Job
from inferflux.workers.engine.pace import STRETCH
from inferflux.workers.engine.pages import chain_hash, root_hash
from inferflux.workers.engine.plan import Placement, Plan
from inferflux.workers.engine.scheduler import Scheduler
from inferflux.workers.engine.sequence import Sequence

PAGE = 4


def capacity(*, pages_shared: bool, num_pages: int = 64, max_sequences: int = 4, context_length: int = 64) -> Capacity:
    return Capacity(
        num_pages=num_pages,
        page_size=PAGE,
        max_sequences=max_sequences,
        max_batch_tokens=16,
        context_length=context_length,
        vocab_size=1000,
        embedding_size=4,
        fingerprint="test",
        pages_shared=pages_shared,
    )


def chain_of(tokens: list[int], salt: str) -> tuple[bytes, ...]:
    """The hashes of the full pages."""
    chain: list[bytes] = []
    for start in range(0, len(tokens) - PAGE + 1, PAGE):
        parent = chain[-1] if chain else root_hash("test", salt)
        chain.append(chain_hash(parent, tokens[start : start + PAGE]))
    return tuple(chain)


class Memory:
    """What a backend's KV would hold, as tokens: a sequence that reads anything but its own past fails."""

    def __init__(self, limits: Capacity) -> None:
        self.shared = limits.pages_shared
        self.pages: list[list[int]] = [[] for _ in range(limits.num_pages)]
        self.streams: list[list[int]] = [[] for _ in range(limits.max_sequences)]

    def run(self, plan: Plan) -> list[Sample]:
        for placement in plan.placements:
            self.check_lost(placement)
            held = self.streams[placement.slot if placement.source is None else placement.source]
            assert self.shared or len(held) >= placement.num_tokens
            self.streams[placement.slot] = held[: placement.num_tokens]
        samples = []
        for sequence, chunk in zip(plan.sequences, plan.batch, strict=True):
            assert chunk.tokens
            past = self.read(chunk.slot, chunk.block_table, chunk.start)
            assert chunk.embed or past == sequence.tokens[: chunk.start]
            assert list(chunk.tokens) == sequence.tokens[chunk.start : chunk.start + len(chunk.tokens)]
            self.write(chunk.slot, chunk.block_table, chunk.start, chunk.tokens)
            if chunk.embed:
                samples.append(Sample(embedding=(1.0,)))
            else:
                samples.append(Sample(None if chunk.sampling is None else sum(chunk.history) % 7))
        return samples

    def check_lost(self, placement: Placement) -> None:
        """What is said to be lost is what lies there: it would be saved under those names."""
        if placement.lost:
            tokens = self.streams[placement.slot][: len(placement.lost) * PAGE]
            assert placement.lost in (chain_of(tokens, ""), chain_of(tokens, "tenant"))

    def read(self, slot: int, block_table: list[int], end: int) -> list[int]:
        if not self.shared:
            return self.streams[slot][:end]
        return [token for page in block_table for token in self.pages[page]][:end]

    def write(self, slot: int, block_table: list[int], start: int, tokens: list[int]) -> None:
        assert len(block_table) * PAGE >= start + len(tokens)
        if not self.shared:
            assert len(self.streams[slot]) == start
            self.streams[slot] += tokens
            return
        for position, token in enumerate(tokens, start):
            page = self.pages[block_table[position // PAGE]]
            del page[position % PAGE :]
            page.append(token)


class Driver:
    """Runs a scheduler against a memory, the way the engine does, and counts how each request ends."""

    def __init__(self, limits: Capacity, options: SchedulerSettings) -> None:
        self.scheduler = Scheduler(options, limits)
        self.memory = Memory(limits)
        self.endings: Counter[str] = Counter()
        self.lengths: dict[Sequence, int] = {}
        self.num_added = 0
        self.max_running = 0

    def add(self, prompt: list[int], max_tokens: int = 4, **options: object) -> Job:
        self.num_added += 1
        job = Job(request=f"r{self.num_added}", choice=0, prompt=tuple(prompt), max_tokens=max_tokens, **options)  # type: ignore[arg-type]
        if self.scheduler.refusal(job):
            self.endings[job.request] += 1
        else:
            sequence = self.scheduler.add(job)
            self.lengths[sequence] = min(len(sequence.tokens) + max_tokens, self.scheduler.max_length)
        return job

    def adopt(self, prompt: list[int], salt: str, *, works: bool) -> None:
        """A saved prefix comes back, or is not what it seemed."""
        chain = chain_of(prompt, salt)
        placement = self.scheduler.cache.adopt(chain) if chain else None
        if placement is None:
            return
        self.memory.check_lost(placement)
        self.memory.streams[placement.slot] = prompt[: placement.num_tokens] if works else []
        if not works:
            self.scheduler.cache.clear(placement.slot)

    def num_computed(self, slot: int) -> int:
        return len(self.memory.streams[slot])

    def check_integrity(self) -> None:
        self.scheduler.check_integrity(None if self.memory.shared else self.num_computed)

    def cancel(self, request: str) -> None:
        for sequence in self.scheduler.cancel(request):
            self.endings[sequence.job.request] += 1

    def step(self, meanwhile: Callable[[], object] = lambda: None) -> Plan:
        """`meanwhile` happens between the choice of a batch and its result."""
        streaming = {sequence for sequence in self.scheduler.running if sequence.num_remaining == 1}
        self.max_running = len(self.scheduler.running)
        plan = self.scheduler.schedule()
        assert bool(plan.batch) == self.scheduler.has_work
        self.check_limits(plan, streaming)
        meanwhile()
        self.scheduler.look_ahead()
        for sequence, sample in self.scheduler.commit(plan, self.memory.run(plan)):
            if sample.embedding is not None or len(sequence.tokens) >= self.lengths[sequence]:
                self.scheduler.finish(sequence)
                self.endings[sequence.job.request] += 1
        self.check_integrity()
        return plan

    def check_limits(self, plan: Plan, streaming: set[Sequence]) -> None:
        options = self.scheduler.settings
        assert len(plan.batch) <= max(self.max_running, options.max_batch_size)
        counts = {
            sequence: len(chunk.tokens)
            for sequence, chunk in zip(plan.sequences, plan.batch, strict=True)
            if not chunk.embed
        }
        assert sum(counts.values()) <= min(options.max_batch_tokens, self.scheduler.capacity.max_batch_tokens)
        if streaming & counts.keys():
            prefill = sum(count for sequence, count in counts.items() if sequence not in streaming)
            assert prefill <= options.chunked_prefill_tokens
        if len(streaming) <= options.max_batch_tokens:
            assert all(sequence in counts for sequence in streaming if sequence.slot is not None)

    def drain(self) -> None:
        for _ in range(5000):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("the scheduler does not come to an end")


prompts = st.builds(
    lambda head, tail: [head] * 9 + tail, st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=24)
)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        pages_shared=st.booleans(),
        num_pages=st.integers(6, 24),
        max_sequences=st.integers(1, 4),
        context_length=st.integers(16, 64),
        max_batch_tokens=st.integers(4, 16),
        chunk=st.integers(1, 16),
    )
    def build(
        self,
        pages_shared: bool,
        num_pages: int,
        max_sequences: int,
        context_length: int,
        max_batch_tokens: int,
        chunk: int,
    ) -> None:
        limits = capacity(
            pages_shared=pages_shared, num_pages=num_pages, max_sequences=max_sequences, context_length=context_length
        )
        options = SchedulerSettings(
            max_batch_tokens=max_batch_tokens, max_batch_size=max_sequences, chunked_prefill_tokens=chunk
        )
        self.driver = Driver(limits, options)

    @rule(
        prompt=prompts,
        max_tokens=st.integers(1, 30),
        service_class=st.sampled_from(ServiceClass),
        salt=st.sampled_from(("", "tenant")),
        resumed=st.lists(st.integers(0, 6), max_size=5),
        embed=st.integers(0, 9).map(lambda number: number == 0),
    )
    def arrive(
        self,
        prompt: list[int],
        max_tokens: int,
        service_class: ServiceClass,
        salt: str,
        resumed: list[int],
        embed: bool,
    ) -> None:
        resumed = [] if embed or len(prompt) + len(resumed) >= self.driver.scheduler.max_length else resumed
        self.driver.add(prompt, max_tokens, service_class=service_class, salt=salt, resumed=tuple(resumed), embed=embed)

    @rule(prompt=prompts, max_tokens=st.integers(1, 8), count=st.integers(2, 4))
    def arrive_as_samples_of_one_prompt(self, prompt: list[int], max_tokens: int, count: int) -> None:
        for _ in range(count):
            self.driver.add(prompt, max_tokens)

    @rule(prompt=prompts, max_tokens=st.integers(1, 8), salt=st.sampled_from(("", "tenant")))
    def arrive_during_a_step(self, prompt: list[int], max_tokens: int, salt: str) -> None:
        self.driver.step(lambda: self.driver.add(prompt, max_tokens, salt=salt))

    @precondition(lambda self: not self.driver.memory.shared)
    @rule(prompt=prompts, salt=st.sampled_from(("", "tenant")), works=st.booleans())
    def restore(self, prompt: list[int], salt: str, works: bool) -> None:
        self.driver.adopt(prompt, salt, works=works)

    @rule(owed=st.booleans())
    def make_room(self, owed: bool) -> None:
        self.driver.scheduler.make_room(batch_is_owed=owed)

    @precondition(lambda self: self.driver.scheduler.waiting)
    @rule(data=st.data(), reads=st.booleans())
    def read(self, data: st.DataObject, reads: bool) -> None:
        """A prefix of somebody who waits is on its way, or has come."""
        data.draw(st.sampled_from(self.driver.scheduler.waiting)).is_restoring = reads

    @rule(
        max_batch_tokens=st.integers(4, 40), max_batch_size=st.integers(1, 8), chunked_prefill_tokens=st.integers(1, 16)
    )
    def configure(self, **bounds: int) -> None:
        self.driver.scheduler.settings = SchedulerSettings(**bounds)

    @precondition(lambda self: self.driver.num_added)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.driver.cancel(f"r{data.draw(st.integers(1, self.driver.num_added))}")

    @precondition(lambda self: self.driver.num_added)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """A batch that the backend could not compute: its slots are emptied and its sequences end."""
        plan = self.driver.scheduler.schedule()
        for chunk in plan.batch:
            self.driver.memory.streams[chunk.slot] = []
        for sequence in plan.sequences:
            self.driver.scheduler.discard(sequence)
            self.driver.endings[sequence.job.request] += 1

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.driver.step()

    @invariant()
    def integrity(self) -> None:
        if hasattr(self, "driver"):
            self.driver.check_integrity()

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            for sequence in self.driver.scheduler.waiting:
                sequence.is_restoring = False
            self.driver.drain()
            assert self.driver.scheduler.pool.num_used == 0
            assert self.driver.endings == {f"r{number}": 1 for number in range(1, self.driver.num_added + 1)}


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.fixture(params=[True, False], ids=["shared pages", "slots"])
def pages_shared(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_thousands_of_steps_on_a_pool_that_is_too_small(pages_shared: bool) -> None:
    draw = random.Random(7)
    driver = Driver(
        capacity(pages_shared=pages_shared, num_pages=12, context_length=40),
        SchedulerSettings(max_batch_tokens=12, max_batch_size=4, chunked_prefill_tokens=6),
    )
    for _ in range(3000):
        if draw.random() < 0.3:
            prompt = [draw.randint(1, 2)] * 8 + [draw.randint(1, 9) for _ in range(draw.randint(1, 12))]
            driver.add(prompt, draw.randint(1, 24), service_class=draw.choice(list(ServiceClass)))
        if driver.num_added and draw.random() < 0.05:
            driver.cancel(f"r{draw.randint(1, driver.num_added)}")
        driver.step()
    driver.drain()
    assert driver.scheduler.num_preemptions > 20
    assert driver.scheduler.prefix_hits > 100
    assert driver.scheduler.pool.num_used == 0
    assert set(driver.endings.values()) == {1}
    assert len(driver.endings) == driver.num_added


def test_samples_of_one_prompt_compute_its_full_pages_once(pages_shared: bool) -> None:
    driver = Driver(capacity(pages_shared=pages_shared), SchedulerSettings(max_batch_size=4))
    prompt = list(range(1, 14))
    for _ in range(4):
        driver.add(prompt, max_tokens=3)
    num_computed = 0
    while driver.scheduler.has_work:
        num_computed += sum(len(chunk.tokens) for chunk in driver.step().batch)
    # The last page is not full, so each sample computes its one token; then come two of the three tokens drawn.
    assert num_computed == 12 + 4 * 1 + 4 * 2
    assert driver.scheduler.prefix_hits == 3 * 12


def test_a_prompt_that_is_cached_whole_still_computes_its_last_page(pages_shared: bool) -> None:
    driver = Driver(capacity(pages_shared=pages_shared), SchedulerSettings())
    for num_cached in (0, 4):
        driver.add([1] * 8, max_tokens=1)
        (chunk,) = driver.step().batch
        assert (chunk.start, len(chunk.tokens)) == (num_cached, 8 - num_cached)


def test_a_prompt_waits_for_an_equal_one_unless_that_is_of_a_lower_class(pages_shared: bool) -> None:
    driver = Driver(capacity(pages_shared=pages_shared), SchedulerSettings(max_batch_tokens=8))
    first = driver.add([1] * 30, service_class=ServiceClass.DEFAULT)
    driver.step()
    driver.add([1] * 30, service_class=ServiceClass.BATCH)
    ahead = driver.add([1] * 30, service_class=ServiceClass.PRIORITY)
    driver.step()
    assert [sequence.job for sequence in driver.scheduler.running] == [ahead, first]


def test_a_second_turn_goes_on_in_the_slot_that_holds_the_first() -> None:
    driver = Driver(capacity(pages_shared=False), SchedulerSettings())
    driver.add([1] * 8, max_tokens=5)
    driver.drain()
    held = list(driver.memory.streams[0][:12])
    driver.add([*held, 5, 5], max_tokens=1)
    (placement,) = driver.step().placements
    assert (placement.slot, placement.source, placement.num_tokens) == (0, None, 12)


def test_a_shared_prefix_is_copied_and_the_conversation_that_has_it_stays() -> None:
    driver = Driver(capacity(pages_shared=False), SchedulerSettings())
    driver.add([1] * 8 + [2] * 8, max_tokens=1)
    driver.drain()
    driver.add([1] * 8 + [3] * 8, max_tokens=1)
    (placement,) = driver.step().placements
    assert (placement.slot, placement.source, placement.num_tokens) == (1, 0, 8)
    assert len(driver.scheduler.slots.held(0)) == 4


def test_another_tenant_finds_nothing_in_the_cache(pages_shared: bool) -> None:
    driver = Driver(capacity(pages_shared=pages_shared), SchedulerSettings())
    for salt in ("a", "b"):
        driver.add([1] * 16, salt=salt)
        driver.drain()
    assert driver.scheduler.prefix_hits == 0


def test_a_long_prompt_does_not_stall_what_already_streams(pages_shared: bool) -> None:
    driver = Driver(
        capacity(pages_shared=pages_shared), SchedulerSettings(max_batch_tokens=16, chunked_prefill_tokens=4)
    )
    driver.add([1, 2, 3], max_tokens=20)
    driver.step()
    driver.add([9] * 40, max_tokens=2)
    for _ in range(10):
        assert [len(chunk.tokens) for chunk in driver.step().batch] == [1, 4]


def test_higher_classes_start_first_and_lower_ones_give_way(pages_shared: bool) -> None:
    driver = Driver(
        capacity(pages_shared=pages_shared, num_pages=6, max_sequences=3), SchedulerSettings(max_batch_size=3)
    )
    batch = driver.add([1] * 7, max_tokens=16, service_class=ServiceClass.BATCH)
    default = driver.add([2] * 7, max_tokens=16)
    priority = driver.add([3] * 7, max_tokens=1, service_class=ServiceClass.PRIORITY)
    first = driver.step()
    assert [sequence.job for sequence in first.sequences][:2] == [priority, default]
    while driver.scheduler.num_preemptions == 0:
        driver.step()
    assert [sequence.job for sequence in driver.scheduler.waiting] == [batch]
    driver.drain()
    assert set(driver.endings.values()) == {1}


def test_a_higher_class_takes_the_slot_of_the_latest_batch_sequence(pages_shared: bool) -> None:
    driver = Driver(capacity(pages_shared=pages_shared, max_sequences=2), SchedulerSettings(max_batch_size=2))
    first, second = (driver.add([number] * 9, 20, service_class=ServiceClass.BATCH) for number in (1, 2))
    driver.step()
    driver.add([3] * 9, 20)
    driver.scheduler.make_room(batch_is_owed=True)
    driver.step()
    assert [sequence.job for sequence in driver.scheduler.running] == [first, second]
    driver.scheduler.make_room(batch_is_owed=False)
    driver.step()
    assert [sequence.job for sequence in driver.scheduler.waiting] == [second]
    driver.add([4] * 9, 4, service_class=ServiceClass.PRIORITY)
    driver.add([5] * 9, 4)
    driver.scheduler.make_room(batch_is_owed=False)
    driver.step()
    assert [sequence.job.service_class for sequence in driver.scheduler.running] == ["priority", "default"]
    assert driver.scheduler.num_preemptions == 2
    driver.drain()
    assert set(driver.endings.values()) == {1}


def test_batch_that_is_owed_goes_first(pages_shared: bool) -> None:
    driver = Driver(capacity(pages_shared=pages_shared, max_sequences=1), SchedulerSettings(max_batch_size=1))
    driver.add([3] * 9, 1, service_class=ServiceClass.PRIORITY)
    batch = driver.add([1] * 9, 1, service_class=ServiceClass.BATCH)
    driver.scheduler.make_room(batch_is_owed=True)
    (sequence,) = driver.step().sequences
    assert sequence.job == batch


def test_nobody_is_sent_away_for_one_who_waits_for_an_equal_prompt(pages_shared: bool) -> None:
    driver = Driver(
        capacity(pages_shared=pages_shared, max_sequences=2), SchedulerSettings(max_batch_size=2, max_batch_tokens=8)
    )
    driver.add([1] * 9, 20, service_class=ServiceClass.BATCH)
    driver.step()
    driver.step()
    driver.add([2] * 30, 4)
    driver.step()
    driver.add([2] * 30, 4)
    driver.scheduler.make_room(batch_is_owed=False)
    assert driver.scheduler.num_preemptions == 0


def test_a_smaller_batch_takes_effect_as_sequences_end(pages_shared: bool) -> None:
    driver = Driver(capacity(pages_shared=pages_shared), SchedulerSettings(max_batch_size=4))
    for number in range(1, 7):
        driver.add([number] * 5, max_tokens=2 * number)
    driver.step()
    driver.scheduler.settings = SchedulerSettings(max_batch_size=2)
    sizes = []
    while driver.scheduler.has_work:
        sizes.append(len(driver.step().batch))
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {4, 3, 2, 1}


def test_who_may_not_begin_any_more_is_dropped_and_who_has_begun_is_not(pages_shared: bool) -> None:
    driver = Driver(capacity(pages_shared=pages_shared, max_sequences=1), SchedulerSettings(max_batch_size=1))
    running = driver.add([1] * 5, start_by=10.0)
    driver.step()
    late = driver.add([2] * 5, start_by=10.0)
    driver.add([3] * 5, start_by=10.0, resumed=(4,))
    driver.add([4] * 5)
    assert driver.scheduler.expire(10.0) == []
    assert [sequence.job for sequence in driver.scheduler.expire(10.1)] == [late]
    assert driver.scheduler.running[0].job == running


def test_what_a_slot_is_about_to_lose_is_named_once() -> None:
    driver = Driver(capacity(pages_shared=False, max_sequences=2), SchedulerSettings(max_batch_size=2))
    for number in (1, 2):
        driver.add([number] * 12, max_tokens=1)
        driver.drain()
    first = tuple(driver.scheduler.slots.content(0))
    driver.add([1] * 12 + [3] * 4, max_tokens=1)
    (placement,) = driver.step().placements
    assert (placement.slot, placement.lost) == (0, ())
    driver.drain()
    driver.add([9] * 12, max_tokens=1)
    (placement,) = driver.step().placements
    assert placement.slot == 1
    assert len(placement.lost) == 3
    driver.drain()
    driver.add([8] * 12, max_tokens=1)
    (placement,) = driver.step().placements
    assert placement.lost[:3] == first


def test_what_can_never_run_is_refused_with_the_reason(pages_shared: bool) -> None:
    small = Scheduler(SchedulerSettings(), capacity(pages_shared=pages_shared, num_pages=4))
    cases = {
        Code.CONTEXT_LENGTH_EXCEEDED: Job(request="r", choice=0, prompt=(1,) * 64, max_tokens=1),
        Code.OUT_OF_CAPACITY: Job(request="r", choice=0, prompt=(1,) * 16, max_tokens=1),
        Code.INVALID_REQUEST: Job(request="r", choice=0, prompt=(1, 1000), max_tokens=1),
    }
    for code, job in cases.items():
        refusal = small.refusal(job)
        assert refusal is not None
        assert (refusal.code, refusal.param) == (code, "prompt")
    biased = Job(request="r", choice=0, prompt=(1,), max_tokens=1, sampling=SamplingParams(logit_bias=((1000, 1.0),)))
    refusal = small.refusal(biased)
    assert refusal is not None
    assert refusal.param == "logit_bias"
    assert small.refusal(Job(request="r", choice=0, prompt=(), max_tokens=1)) is not None
    assert small.refusal(Job(request="r", choice=0, prompt=(1,) * 15, max_tokens=100)) is None


def test_a_long_prompt_goes_in_small_chunks_beside_streams_and_a_short_one_at_once() -> None:
    limits = msgspec.structs.replace(
        capacity(pages_shared=True, num_pages=1000, context_length=2000), max_batch_tokens=512
    )
    scheduler = Scheduler(SchedulerSettings(), limits)

    def step() -> dict[str, int]:
        plan = scheduler.schedule()
        scheduler.commit(plan, [Sample(None if chunk.sampling is None else 1) for chunk in plan.batch])
        return {
            sequence.job.request: len(chunk.tokens) for sequence, chunk in zip(plan.sequences, plan.batch, strict=True)
        }

    scheduler.add(Job(request="stream", choice=0, prompt=(1, 2, 3), max_tokens=500))
    step()
    for _ in range(20):
        scheduler.pace.observe(1, 0, 0.01)
        scheduler.pace.observe(1, 100, 0.01 + 100 * 0.001)
    scheduler.add(Job(request="long", choice=0, prompt=tuple(range(900)), max_tokens=5))
    assert step() == {"stream": 1, "long": int(STRETCH * 10)}
    scheduler.add(Job(request="short", choice=0, prompt=(7,) * 90, max_tokens=5, service_class=ServiceClass.PRIORITY))
    assert step() == {"stream": 1, "short": 90}
    assert step() == {"stream": 1, "short": 1, "long": int(STRETCH * 10)}
