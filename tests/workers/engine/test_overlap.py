"""What the engine does while a device computes, and what it leaves until the step is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pytest
from harness.deferred import DeferredPages, Gate
from harness.engine import Recorder
from harness.streams import PagesBackend, answer
from msgspec.structs import replace

from inferflux.broker.errors import Code
from inferflux.config.settings import PagedKVSettings, SchedulerSettings
from inferflux.workers.backends.backend import Chunk, Sample
from inferflux.workers.engine.engine import Engine
from inferflux.workers.engine.job import Job

SCHEDULER = SchedulerSettings(max_batch_size=2)
PROMPT = tuple(range(1, 41))
OTHER = tuple(range(60, 100))


def job(request: str, prompt: tuple[int, ...] = PROMPT, max_tokens: int = 3) -> Job:
    return Job(request=request, choice=0, prompt=prompt, max_tokens=max_tokens, ignore_eos=True)


@pytest.fixture
def device() -> DeferredPages:
    return DeferredPages(SCHEDULER)


@pytest.fixture
def gate(device: DeferredPages) -> Gate:
    return Gate(device)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def engine(device: DeferredPages, gate: Gate, recorder: Recorder) -> Iterator[Engine]:
    engine = Engine(device, SCHEDULER, PagedKVSettings(), recorder)
    engine.start()
    yield engine
    gate.let_go(1000)
    if not engine._inbox.closed:
        engine.check_integrity()
    engine.close()


def num_reported(recorder: Recorder, request: str = "r") -> int:
    choice = recorder.choices.get((request, 0))
    return 0 if choice is None else len(choice.tokens)


def test_a_step_is_reported_behind_the_launch_of_the_next(
    engine: Engine, recorder: Recorder, device: DeferredPages, gate: Gate
) -> None:
    at_launch: list[int] = []
    device.on_launch = lambda: at_launch.append(num_reported(recorder))
    engine.submit([job("r")])
    for num_before in range(3):
        gate.wait()
        assert num_reported(recorder) == num_before
        gate.let_go()
    assert recorder.wait("r").tokens == answer(PROMPT, 3), "nothing follows the last step, so it is reported at once"
    assert at_launch == [0, 0, 1]


def test_a_step_that_is_computed_at_once_is_reported_at_once(recorder: Recorder) -> None:
    at_run: list[int] = []

    class Immediate(PagesBackend):
        defers = False

        def launch(self, batch: Sequence[Chunk]) -> object:
            raise AssertionError("there is nothing to wait for")

        def run(self, batch: Sequence[Chunk]) -> list[Sample]:
            at_run.append(num_reported(recorder))
            return super().run(batch)

    engine = Engine(Immediate(SCHEDULER), SCHEDULER, PagedKVSettings(), recorder)
    engine.start()
    engine.submit([job("r")])
    assert recorder.wait("r").tokens == answer(PROMPT, 3)
    engine.close()
    assert at_run == [0, 1, 2]


def test_what_arrives_during_a_step_is_in_the_next(
    engine: Engine, recorder: Recorder, device: DeferredPages, gate: Gate
) -> None:
    arriving = [job("early", OTHER)]
    device.on_launch = lambda: engine.submit([arriving.pop()]) if arriving else None
    engine.submit([job("r")])
    gate.wait()
    assert engine._scheduler is not None
    (waiting,) = engine._scheduler.waiting
    assert len(waiting.page_hashes) == len(OTHER) // 16, "its pages are named while the device computes"
    engine.cancel("early")
    engine.submit([job("late", OTHER)])
    gate.let_go(1000)
    assert recorder.wait("r").tokens == answer(PROMPT, 3)
    assert recorder.wait("late").tokens == answer(OTHER, 3)
    assert device.batches[:2] == [[len(PROMPT)], [1, len(OTHER)]]
    assert num_reported(recorder, "early") == 0


def test_a_cancel_waits_for_the_step_and_nothing_comes_after_it(
    engine: Engine, recorder: Recorder, device: DeferredPages, gate: Gate
) -> None:
    reported: list[int] = []
    dropped: Future[None] = Future()
    dropped.add_done_callback(lambda _: reported.append(num_reported(recorder)))

    def cancel() -> None:
        engine.cancel("r")
        engine._inbox.post(dropped)

    engine.submit([job("r", max_tokens=300)])
    gate.wait()
    gate.let_go()
    gate.wait()
    device.on_launch = cancel
    gate.let_go()
    gate.wait()
    device.on_launch = lambda: None
    assert engine.stats().num_running == 1
    assert engine.stats().num_pages_used > 0, "the device writes to them"
    gate.let_go()
    dropped.result(60)
    engine.check_integrity()
    assert (engine.stats().num_running, engine.stats().num_pages_used) == (0, 0)
    assert recorder.choices["r", 0].tokens == answer(PROMPT, 3)
    assert recorder.choices["r", 0].num_endings == 0
    assert reported == [3]
    assert len(device.batches) == 3


def test_what_follows_a_cancel_waits_with_it(
    engine: Engine, recorder: Recorder, device: DeferredPages, gate: Gate
) -> None:
    engine.submit([job("r", max_tokens=300)])
    gate.wait()
    engine.cancel("r")
    engine.submit([replace(job("r"), choice=1)])
    gate.let_go(1000)
    assert recorder.wait("r", 1).tokens == answer(PROMPT, 3)


def test_a_check_and_new_bounds_wait_for_the_step(
    engine: Engine, recorder: Recorder, device: DeferredPages, gate: Gate
) -> None:
    checked: Future[None] = Future()
    bounds = SchedulerSettings(max_batch_size=1)

    def post() -> None:
        engine._inbox.post(checked)
        engine.configure(bounds)

    device.on_launch = post
    engine.submit([job("r")])
    gate.wait()
    device.on_launch = lambda: None
    assert engine._scheduler is not None
    assert engine._scheduler.settings == SCHEDULER
    assert not checked.done()
    gate.let_go()
    gate.wait()
    assert engine._scheduler.settings == bounds
    checked.result(0)


@pytest.mark.parametrize("fails", ["at the launch", "at the result"])
def test_a_step_that_fails_ends_its_sequences_and_no_others(
    engine: Engine, recorder: Recorder, device: DeferredPages, gate: Gate, fails: str
) -> None:
    gate.let_go(1000)
    failures: list[Exception] = [OSError("the device is gone")]

    def fail() -> None:
        if failures:
            engine.submit([job("other", OTHER)])
            raise failures.pop()

    if fails == "at the launch":
        device.on_launch = fail
    else:
        device.on_result = fail
    engine.submit([job("r")])
    error = recorder.wait("r").error
    assert error is not None
    assert error.code == Code.ENGINE_ERROR
    assert "the device is gone" in error.message
    assert recorder.wait("other").tokens == answer(OTHER, 3)
    engine.submit([job("again")])
    assert recorder.wait("again").updates[0].num_cached == 0, "what the step left is not trusted"


def test_updates_of_the_step_before_outlive_a_failure(
    engine: Engine, recorder: Recorder, device: DeferredPages, gate: Gate
) -> None:
    engine.submit([job("r")])
    gate.wait()
    gate.let_go()
    gate.wait()
    gate.failure = OSError("the device is gone")
    gate.let_go()
    choice = recorder.wait("r")
    assert choice.tokens == answer(PROMPT, 1)
    assert choice.error is not None


def test_a_close_waits_for_the_step_and_loses_nothing_of_it(
    engine: Engine, recorder: Recorder, device: DeferredPages, gate: Gate
) -> None:
    engine.submit([job("r", max_tokens=300)])
    for _ in range(2):
        gate.wait()
        gate.let_go()
    gate.wait()
    engine._inbox.close()
    gate.let_go()
    engine.close()
    assert len(device.batches) == 3
    assert recorder.choices["r", 0].tokens == answer(PROMPT, 3)


def test_who_takes_updates_badly_does_not_stop_the_step(device: DeferredPages, gate: Gate, recorder: Recorder) -> None:
    def take(updates: list[object]) -> None:
        recorder(updates)  # type: ignore[arg-type]
        if num_reported(recorder) == 1:
            raise ValueError("not now")

    engine = Engine(device, SCHEDULER, PagedKVSettings(), take)  # type: ignore[arg-type]
    engine.start()
    gate.let_go(1000)
    engine.submit([job("r")])
    assert recorder.wait("r").tokens == answer(PROMPT, 3)
    engine.close()
