from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from harness.engine import Recorder

from inferflux.broker.errors import Code, ConfigError
from inferflux.broker.subjects import ServiceClass
from inferflux.config.settings import PagedKVSettings, RuntimeSettings, SchedulerSettings, StubSettings
from inferflux.workers.backends.backend import Capacity, Chunk, Sample, SamplingParams
from inferflux.workers.backends.stub import EOS, MARKER, StubBackend
from inferflux.workers.engine import engine as engine_module
from inferflux.workers.engine.engine import Engine
from inferflux.workers.engine.job import Job, Update
from inferflux.workers.engine.scheduler import Scheduler

PROMPT = tuple(b"a prompt of forty-five bytes, or three pages.")
SETTINGS = RuntimeSettings(
    scheduler=SchedulerSettings(max_batch_size=4), stub=StubSettings(step_s=0.0, context_length=512)
)


class SteppedBackend(StubBackend):
    """Computes a batch only when the test lets it, and fails when a prompt holds a byte that says so."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)
        self.gate: threading.Semaphore | None = None
        self.entered = threading.Semaphore(0)
        self.broken = False
        self.batches: list[list[int]] = []

    def hold(self) -> None:
        """From now on each batch waits for `let_go`."""
        self.gate = threading.Semaphore(0)

    def let_go(self, count: int = 1) -> None:
        if self.gate is not None:
            self.gate.release(count)

    def run(self, batch: Sequence[Chunk]) -> list[Sample]:
        self.entered.release()
        if self.gate is not None:
            assert self.gate.acquire(timeout=60)
        self.batches.append([len(chunk.tokens) for chunk in batch])
        if any(0 in chunk.tokens for chunk in batch):
            self.broken = any(1 in chunk.tokens for chunk in batch)
            raise OSError("the device is gone")
        return super().run(batch)

    def trim(self, slot: int, num_tokens: int) -> None:
        if self.broken:
            raise OSError("and stays away")
        super().trim(slot, num_tokens)


@pytest.fixture
def backend() -> SteppedBackend:
    return SteppedBackend()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def engine(backend: SteppedBackend, recorder: Recorder) -> Iterator[Engine]:
    engine = Engine(backend, SETTINGS.scheduler, SETTINGS.paged_kv, recorder)
    engine.start()
    yield engine
    backend.let_go(1000)
    if not (backend.broken or engine._inbox.closed):
        engine.check_integrity()
    engine.close()


def job(request: str = "r", **options: object) -> Job:
    return Job(**{"request": request, "choice": 0, "prompt": PROMPT, "max_tokens": 8, **options})  # type: ignore[arg-type]


def test_a_prompt_is_answered_token_by_token(engine: Engine, recorder: Recorder) -> None:
    engine.submit([job()])
    choice = recorder.wait("r")
    assert choice.finish_reason == "length"
    assert len(choice.updates) == len(choice.tokens) == 8
    assert [update.index for update in choice.updates] == list(range(8))
    assert choice.text.startswith(MARKER)
    assert choice.num_endings == 1


def test_the_end_of_the_sequence_is_reported_as_a_token_without_text(engine: Engine, recorder: Recorder) -> None:
    engine.submit([job(max_tokens=400)])
    choice = recorder.wait("r")
    assert choice.finish_reason == "stop"
    assert choice.tokens[-1] == EOS
    assert choice.updates[-1].text == ""
    engine.submit([job("on", max_tokens=400, ignore_eos=True)])
    assert len(recorder.wait("on").tokens) == 400


def test_the_end_of_the_context_is_a_length(engine: Engine, recorder: Recorder) -> None:
    engine.submit([job(max_tokens=10_000, ignore_eos=True)])
    choice = recorder.wait("r")
    assert choice.finish_reason == "length"
    assert len(choice.tokens) == 512 - len(PROMPT)


def test_a_stop_string_ends_the_text_before_itself(engine: Engine, recorder: Recorder) -> None:
    engine.submit([job("whole", max_tokens=40)])
    text = recorder.wait("whole").text
    stop = text.split()[6] + " "
    engine.submit([job("stopped", max_tokens=40, stop=(stop,))])
    choice = recorder.wait("stopped")
    assert choice.finish_reason == "stop"
    assert choice.text == text[: text.index(stop)]


@pytest.mark.parametrize("num_resumed", [0, 1, 5, 19, 20])
def test_a_resumed_choice_goes_on_where_it_was(engine: Engine, recorder: Recorder, num_resumed: int) -> None:
    engine.submit([job("whole", max_tokens=20, stop=("never",))])
    whole = recorder.wait("whole")
    engine.submit([job("rest", max_tokens=20, stop=("never",), resumed=tuple(whole.tokens[:num_resumed]))])
    rest = recorder.wait("rest")
    assert rest.updates[0].index == num_resumed
    assert rest.tokens == whole.tokens[num_resumed:]
    assert rest.text == "".join(update.text for update in whole.updates[num_resumed:])
    assert rest.finish_reason == "length"


def test_samples_of_one_prompt_share_its_prefill(engine: Engine, recorder: Recorder, backend: SteppedBackend) -> None:
    engine.submit([job(choice=number) for number in range(4)])
    assert {tuple(recorder.wait("r", number).tokens) for number in range(4)} == {tuple(recorder.wait("r").tokens)}
    assert sum(count for batch in backend.batches for count in batch if count > 1) == len(PROMPT) + 3 * (
        len(PROMPT) % 16
    )


def test_cached_tokens_are_reported(engine: Engine, recorder: Recorder) -> None:
    for request, num_cached in (("first", 0), ("second", 32), ("other", 0)):
        engine.submit([job(request, salt="other" if request == "other" else "")])
        assert recorder.wait(request).updates[0].num_cached == num_cached
    stats = engine.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (3 * len(PROMPT), 32)
    assert (stats.prompt_tokens, stats.generated_tokens) == (3 * len(PROMPT), 24)


def test_an_embedding_is_one_update_and_leaves_no_pages(engine: Engine, recorder: Recorder) -> None:
    engine.submit([job(embed=True, prompt=PROMPT * 10)])
    choice = recorder.wait("r")
    (update,) = choice.updates
    assert update.finish_reason == "stop"
    assert update.embedding is not None
    assert sum(value * value for value in update.embedding) == pytest.approx(1.0)
    assert engine.stats().num_pages_used == engine.stats().num_pages_cached == 0


def test_logprobs_carry_text_and_bytes(engine: Engine, recorder: Recorder) -> None:
    engine.submit([job(sampling=SamplingParams(num_logprobs=3))])
    first = recorder.wait("r").logprobs[0]
    assert first.token == MARKER
    assert bytes(first.bytes) == MARKER.encode()
    assert len(first.top) == 3
    assert first.top[0].logprob == first.logprob


def test_cancelling_frees_the_pages_before_the_next_step(
    engine: Engine, recorder: Recorder, backend: SteppedBackend
) -> None:
    backend.hold()
    engine.submit([job("gone", max_tokens=400), job("gone", choice=1, max_tokens=400)])
    assert backend.entered.acquire(timeout=60)
    backend.let_go()
    assert backend.entered.acquire(timeout=60)
    assert engine.stats().num_pages_used > 0
    engine.cancel("gone")
    backend.let_go()
    engine.submit([job("next", prompt=tuple(b"hi"), max_tokens=1)])
    assert backend.entered.acquire(timeout=60)
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_pages_used) == (1, 0, 1)
    backend.let_go()
    recorder.wait("next")
    assert all(choice.num_endings == 0 for (request, _), choice in recorder.choices.items() if request == "gone")
    engine.cancel("gone")
    engine.cancel("never heard of")


def test_what_cannot_run_fails_and_the_rest_runs(engine: Engine, recorder: Recorder) -> None:
    engine.submit([job("long", prompt=(1,) * 512)])
    engine.submit([job("foreign", prompt=(1 << 20,))])
    engine.submit([job("good")])
    error = recorder.wait("long").error
    assert error is not None
    assert error.code == Code.CONTEXT_LENGTH_EXCEEDED
    error = recorder.wait("foreign").error
    assert error is not None
    assert error.code == Code.INVALID_REQUEST
    assert recorder.wait("good").finish_reason == "length"


def test_a_batch_that_fails_ends_its_sequences_and_the_engine_lives(
    engine: Engine, recorder: Recorder, backend: SteppedBackend
) -> None:
    engine.submit([job("bad", prompt=(5, 0, 5))])
    error = recorder.wait("bad").error
    assert error is not None
    assert error.code == Code.ENGINE_ERROR
    assert "the device is gone" in error.message
    engine.submit([job("good")])
    assert recorder.wait("good").finish_reason == "length"
    assert engine.stats().num_pages_used == 0


def test_a_backend_that_does_not_recover_fails_everything_with_the_reason(engine: Engine, recorder: Recorder) -> None:
    engine.submit([job("bad", prompt=(5, 0, 1))])
    assert recorder.wait("bad").error is not None
    engine.submit([job("later")])
    error = recorder.wait("later").error
    assert error is not None
    assert error.code == Code.ENGINE_ERROR
    assert not engine.stats().busy


def test_updates_that_are_not_taken_do_not_stop_the_engine(backend: SteppedBackend, recorder: Recorder) -> None:
    def take(updates: list[object]) -> None:
        recorder(updates)  # type: ignore[arg-type]
        if len(recorder.choices) == 1:
            raise ValueError("not now")

    engine = Engine(backend, SETTINGS.scheduler, SETTINGS.paged_kv, take)  # type: ignore[arg-type]
    engine.start()
    engine.submit([job("one")])
    recorder.wait("one")
    engine.submit([job("two")])
    assert recorder.wait("two").finish_reason == "length"
    engine.close()


def test_a_model_that_does_not_load_fails_the_start(recorder: Recorder) -> None:
    class Unloadable(StubBackend):
        def start(self) -> Capacity:
            raise ConfigError("model.path: nothing there")

    engine = Engine(Unloadable(SETTINGS), SETTINGS.scheduler, PagedKVSettings(), recorder)
    with pytest.raises(ConfigError, match="nothing there"):
        engine.start()
    engine.close()


def test_a_closed_engine_takes_no_jobs(engine: Engine) -> None:
    engine.close()
    engine.cancel("r")
    with pytest.raises(RuntimeError):
        engine.submit([job()])


def test_new_bounds_hold_from_the_next_step(engine: Engine, recorder: Recorder, backend: SteppedBackend) -> None:
    backend.hold()
    engine.submit([job("first", max_tokens=4)])
    assert backend.entered.acquire(timeout=60)
    engine.configure(SchedulerSettings(max_batch_size=2, max_batch_tokens=16, chunked_prefill_tokens=8))
    engine.submit([job(f"r{number}", prompt=(number, *PROMPT), max_tokens=4) for number in range(2, 5)])
    backend.let_go(1000)
    for number in range(2, 5):
        assert recorder.wait(f"r{number}").finish_reason == "length"
    recorder.wait("first")
    assert max(len(batch) for batch in backend.batches) == 2
    assert max(sum(batch) for batch in backend.batches[1:]) <= 16
    assert engine.stats().num_free_slots == 2
    engine.configure(SchedulerSettings(max_batch_size=1000, max_batch_tokens=100_000))
    engine.submit([job(f"s{number}", prompt=(number, *PROMPT), max_tokens=8) for number in range(8)])
    for number in range(8):
        recorder.wait(f"s{number}")
    assert max(len(batch) for batch in backend.batches) == 4
    assert engine.stats().num_free_slots == 4


def test_who_waited_too_long_is_told_and_the_others_go_on(
    engine: Engine, recorder: Recorder, backend: SteppedBackend
) -> None:
    backend.hold()
    engine.submit([job(f"r{number}", max_tokens=30) for number in range(4)])
    assert backend.entered.acquire(timeout=60)
    engine.submit([job("late", start_by=time.time() - 1.0), job("early", start_by=time.time() + 600.0)])
    backend.let_go(1000)
    error = recorder.wait("late").error
    assert error is not None
    assert error.code == Code.QUEUE_TIMEOUT
    for request in ("r0", "r1", "r2", "r3", "early"):
        assert recorder.wait(request).finish_reason == "length"


def test_batch_makes_room_and_says_nothing_twice(engine: Engine, recorder: Recorder, backend: SteppedBackend) -> None:
    backend.hold()
    engine.submit([job(f"b{number}", max_tokens=30, service_class=ServiceClass.BATCH) for number in range(4)])
    assert backend.entered.acquire(timeout=60)
    backend.let_go(5)
    for _ in range(5):
        assert backend.entered.acquire(timeout=60)
    engine.submit([job("above", max_tokens=2, prompt=tuple(b"something else"))])
    backend.let_go(1000)
    recorder.wait("above")
    texts = {recorder.wait(f"b{number}").text for number in range(4)}
    assert len(texts) == 1
    assert [len(recorder.wait(f"b{number}").tokens) for number in range(4)] == [30] * 4
    assert engine.stats().num_preemptions == 1


def test_batch_keeps_its_share(engine: Engine, recorder: Recorder, backend: SteppedBackend) -> None:
    engine.set_batch_share(1.0)
    engine.submit([job("before", max_tokens=30)])
    recorder.wait("before")
    backend.hold()
    engine.submit([job(f"b{number}", max_tokens=4, service_class=ServiceClass.BATCH) for number in range(4)])
    assert backend.entered.acquire(timeout=60)
    engine.submit([job("above", max_tokens=2, prompt=tuple(b"something else"))])
    backend.let_go(1000)
    recorder.wait("above")
    assert engine.stats().num_preemptions == 0


def test_a_cache_that_is_wrong_is_found_when_idle_and_thrown_away(
    engine: Engine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_reset, reset = threading.Event(), Engine._reset

    def note(self: Engine, scheduler: Scheduler, error: Exception) -> None:
        reset(self, scheduler, error)
        was_reset.set()

    def spoil(updates: list[Update]) -> None:
        recorder(updates)
        assert engine._scheduler is not None
        if engine._scheduler.pool.num_cached and not was_reset.is_set():
            engine._scheduler.pool.num_cached += 1

    monkeypatch.setattr(Engine, "_reset", note)
    monkeypatch.setattr(engine_module, "IDLE_CHECK_S", 0.01)
    monkeypatch.setattr(engine, "_on_updates", spoil)
    engine.submit([job("one")])
    recorder.wait("one")
    assert was_reset.wait(timeout=60)
    engine.check_integrity()
    engine.submit([job("two")])
    assert recorder.wait("two").updates[0].num_cached == 0


def test_a_closed_engine_checks_nothing(engine: Engine) -> None:
    engine.close()
    with pytest.raises(RuntimeError):
        engine.check_integrity()
