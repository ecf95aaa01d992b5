"""Clearing the prefix cache: nothing that was computed before is found again, and what runs goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.engine import Recorder
from harness.streams import StreamsBackend, answer

from inferflux.config.settings import PagedKVSettings, RuntimeSettings, SchedulerSettings, StubSettings
from inferflux.workers.backends.backend import Backend
from inferflux.workers.backends.stub import StubBackend
from inferflux.workers.engine.breakeven import BreakEven
from inferflux.workers.engine.engine import Engine
from inferflux.workers.engine.job import Job

TWO_SLOTS = SchedulerSettings(max_batch_size=2)
TIMEOUT_S = 30.0
PROMPT = tuple(number % 200 for number in range(100))


class Served:
    """An engine, and how many prompt tokens each request found in its cache."""

    def __init__(self, backend: Backend, paged_kv: PagedKVSettings) -> None:
        self.recorder = Recorder()
        self.engine = Engine(backend, TWO_SLOTS, paged_kv, self.recorder)
        self.engine.start()

    def submit(self, name: str, max_tokens: int = 2) -> None:
        self.engine.submit([Job(request=name, choice=0, prompt=PROMPT, max_tokens=max_tokens, ignore_eos=True)])

    def num_cached(self, name: str) -> int:
        self.submit(name)
        choice = self.recorder.wait(name)
        self.engine.check_integrity()
        return choice.updates[0].num_cached


@pytest.fixture(params=["shared pages", "one stream for each slot"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    stub = RuntimeSettings(scheduler=TWO_SLOTS, stub=StubSettings(step_s=0.002))
    backend = StubBackend(stub) if request.param == "shared pages" else StreamsBackend(TWO_SLOTS)
    made = Served(backend, PagedKVSettings())
    yield made
    made.engine.check_integrity()
    made.engine.close()


def test_what_was_cached_is_not_found_again(served: Served) -> None:
    assert served.num_cached("r1") == 0
    assert served.num_cached("r2") == 96
    served.engine.clear_cache(1, files=True)
    assert served.num_cached("r3") == 0
    assert served.num_cached("r4") == 96


def test_nothing_stays_cached(served: Served) -> None:
    served.num_cached("r1")
    served.engine.clear_cache(1, files=True)
    served.engine.check_integrity()
    assert served.engine.stats().num_pages_cached == 0


def test_what_runs_goes_on_and_is_not_shared(served: Served) -> None:
    served.submit("long", max_tokens=300)
    served.recorder.wait_for_tokens("long", 1)
    served.engine.clear_cache(1, files=True)

    assert served.num_cached("r1") == 0
    assert len(served.recorder.wait("long").tokens) == 300


def test_saved_prefixes_are_deleted_and_those_of_another_epoch_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reading beats computing, however long a busy machine keeps whoever reads.
    monkeypatch.setattr(BreakEven, "prefers_reading", lambda *_: True)
    monkeypatch.setattr(BreakEven, "patience_s", lambda *_: TIMEOUT_S)

    def start() -> Served:
        return Served(StreamsBackend(TWO_SLOTS), PagedKVSettings(nvme_path=str(tmp_path)))

    def files() -> list[Path]:
        return list(tmp_path.glob("*/*.kv"))

    first = start()
    first.num_cached("r1")
    first.engine.close()
    assert files()

    # Cleared while this worker was away: the files are there, and of another epoch.
    second = start()
    second.engine.clear_cache(1, files=False)
    assert second.num_cached("r2") == 0
    second.engine.close()

    third = start()
    third.engine.clear_cache(1, files=False)
    assert third.num_cached("r3") == 96
    assert third.recorder.wait("r3").tokens == answer(PROMPT, 2)
    third.engine.clear_cache(2, files=True)
    third.engine.check_integrity()
    assert third.engine._offload is not None
    assert third.engine._offload.flush(TIMEOUT_S)
    assert files() == []
    third.engine.close()
