"""The engine with a disk behind its cache: what comes back is right, and nothing a disk does ends a request."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.deferred import DeferredPages
from harness.engine import Recorder
from harness.streams import PagesBackend, StreamsBackend, answer

from inferflux.config.settings import PagedKVSettings, SchedulerSettings
from inferflux.workers.engine import prefix_file
from inferflux.workers.engine.breakeven import BreakEven
from inferflux.workers.engine.engine import Engine
from inferflux.workers.engine.job import Job
from inferflux.workers.engine.prefix_directory import PrefixDirectory

TIMEOUT_S = 30.0
ROOM = {StreamsBackend: 0, PagesBackend: 16, DeferredPages: 16}
"""Pages where all slots share them: as many as two of the prompts need."""
PROMPTS = [tuple((number * 7 + position) % 200 for position in range(120)) for number in range(4)]


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading beats computing, however long a busy machine keeps whoever reads."""
    monkeypatch.setattr(BreakEven, "prefers_reading", lambda *_: True)
    monkeypatch.setattr(BreakEven, "patience_s", lambda *_: TIMEOUT_S)


class Served:
    """An engine on two slots, with a disk."""

    def __init__(
        self, kind: type[StreamsBackend], root: Path, nvme_bytes: int = 1 << 20, fingerprint: str = "streams"
    ) -> None:
        # Computing is slow beside the disk of most machines.
        self.backend = kind(fingerprint=fingerprint, prefill_token_s=0.0005, num_pages=ROOM[kind])
        self.recorder = Recorder()
        self.engine = Engine(
            self.backend,
            SchedulerSettings(max_batch_size=2),
            PagedKVSettings(nvme_path=str(root), nvme_bytes=nvme_bytes),
            self.recorder,
        )
        self.engine.start()
        self.num_asked = 0

    def ask(self, prompt: tuple[int, ...], count: int = 4, salt: str = "", choices: int = 1) -> int:
        """Check the answer; returns how many prompt tokens came from the cache for the first choice."""
        self.num_asked += 1
        name = f"r{self.num_asked}"
        self.engine.submit(
            [Job(request=name, choice=choice, prompt=prompt, max_tokens=count, salt=salt) for choice in range(choices)]
        )
        for choice in range(choices):
            assert self.recorder.wait(name, choice).tokens == answer(prompt, count)
        self.engine.check_integrity()
        return self.recorder.wait(name).updates[0].num_cached

    def flush(self) -> None:
        """Wait until the disk has everything."""
        assert self.engine._offload is not None
        assert self.engine._offload.flush(TIMEOUT_S)

    def push_out(self) -> None:
        """Ask everything once: only the last two prompts stay in memory."""
        for prompt in PROMPTS:
            self.ask(prompt)
        self.flush()


@pytest.fixture(params=[StreamsBackend, PagesBackend, DeferredPages], ids=["slots", "pages", "pages of a device"])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(**options: object) -> Served:
        made.append(Served(request.param, tmp_path / "nvme", **options))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for served in made:
        served.engine.check_integrity() if not served.engine._inbox.closed else None
        served.engine.close()


Serve = Callable[..., Served]


@pytest.mark.usefixtures("fast_disk")
def test_what_was_pushed_out_comes_back_and_is_not_computed_again(serve: Serve) -> None:
    served = serve()
    served.push_out()
    num_before = served.backend.num_computed_tokens
    assert served.ask(PROMPTS[0]) == 112
    # The prompt's last page is not full: 8 tokens, and 3 of the 4 drawn.
    assert served.backend.num_computed_tokens - num_before == 8 + 3
    assert served.backend.num_loads == 1
    assert served.engine.stats().offload.num_reads == 1


@pytest.mark.usefixtures("fast_disk")
def test_a_restart_begins_with_what_the_last_process_had(serve: Serve) -> None:
    first = serve()
    first.push_out()
    first.engine.close()
    second = serve()
    for prompt in PROMPTS:
        assert second.ask(prompt) == 112


def test_another_model_and_another_tenant_find_nothing(serve: Serve) -> None:
    served = serve()
    served.push_out()
    assert served.ask(PROMPTS[0], salt="tenant") == 0
    assert served.backend.num_loads == 0
    served.engine.close()
    swapped = serve(fingerprint="trained on")
    assert swapped.ask(PROMPTS[0]) == 0
    assert swapped.backend.num_loads == 0


@pytest.mark.usefixtures("fast_disk")
def test_a_conversation_goes_on_and_leaves_one_file_behind(serve: Serve, tmp_path: Path) -> None:
    served = serve()
    talk = PROMPTS[0]
    for _ in range(4):
        served.ask(talk, 20)
        talk = (*talk, *answer(talk, 20), 1, 2, 3)
        served.ask(PROMPTS[2])
        served.ask(PROMPTS[3])
        served.flush()
        assert served.ask(talk) >= len(talk) - 24
    names = [path.name for path in tmp_path.glob("nvme/*/*.kv")]
    assert len(names) == len(set(names)) <= 3


@pytest.mark.usefixtures("fast_disk")
def test_samples_of_a_restored_prompt_share_it(serve: Serve) -> None:
    served = serve()
    served.push_out()
    num_before = served.backend.num_computed_tokens
    served.ask(PROMPTS[0], choices=4)
    assert served.backend.num_computed_tokens - num_before == 4 * (8 + 3)
    assert served.backend.num_loads == 1


def test_short_prefixes_are_not_worth_a_file(serve: Serve, tmp_path: Path) -> None:
    served = serve()
    for number in range(5):
        served.ask((number, *range(50)))
    served.engine.close()
    assert not list(tmp_path.glob("nvme/*/*.kv"))


def test_a_disk_that_does_not_answer_is_not_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def hang(self: PrefixDirectory, key: bytes) -> bytes | None:
        assert gate.wait(TIMEOUT_S)
        return None

    served = serve()
    served.push_out()
    monkeypatch.setattr(PrefixDirectory, "read", hang)
    assert served.ask(PROMPTS[0]) == 0
    assert served.backend.num_loads == 0
    gate.set()


def test_others_run_while_a_prefix_is_read_and_a_cancelled_one_does_not_come(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate = threading.Event(), threading.Event()
    read = PrefixDirectory.read

    def wait(self: PrefixDirectory, key: bytes) -> bytes | None:
        entered.set()
        assert gate.wait(TIMEOUT_S)
        return read(self, key)

    served = serve()
    served.push_out()
    assert served.engine._restorer is not None
    monkeypatch.setattr(served.engine._restorer._break_even, "patience_s", lambda num_tokens: TIMEOUT_S)
    monkeypatch.setattr(PrefixDirectory, "read", wait)
    served.engine.submit([Job(request="gone", choice=0, prompt=PROMPTS[0], max_tokens=4)])
    assert entered.wait(TIMEOUT_S)
    assert served.ask((9, 9, 9)) == 0
    assert served.engine.stats().busy
    served.engine.cancel("gone")
    served.engine.check_integrity()
    gate.set()
    assert served.ask((8, 8, 8)) == 0
    assert served.backend.num_loads == 0
    assert not served.recorder.choices.get(("gone", 0))


@pytest.mark.usefixtures("fast_disk")
def test_bytes_that_the_backend_refuses_are_computed_instead(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    served.push_out()
    monkeypatch.setattr(PrefixDirectory, "read", lambda self, key: b"odd")
    assert served.ask(PROMPTS[0]) == 0
    assert served.backend.num_loads == 1

    def raising(*arguments: object) -> bool:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(served.backend, "write_pages" if isinstance(served.backend, PagesBackend) else "load", raising)
    assert served.ask(PROMPTS[1]) == 0


def test_damaged_files_are_computed_instead(serve: Serve, tmp_path: Path) -> None:
    served = serve()
    served.push_out()
    for path in tmp_path.glob("nvme/*/*.kv"):
        path.write_bytes(path.read_bytes()[:-1])
    assert served.ask(PROMPTS[0]) == 0
    assert served.backend.num_loads == 0
    assert served.engine.stats().offload.active


def test_a_disk_that_fills_up_ends_offloading_but_no_request(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    served = serve()
    monkeypatch.setattr(prefix_file, "_write_all", full)
    served.push_out()
    assert not served.engine.stats().offload.active
    for prompt in PROMPTS:
        served.ask(prompt)


def test_a_disk_that_goes_away_ends_no_request(serve: Serve, tmp_path: Path) -> None:
    served = serve()
    served.push_out()
    shutil.rmtree(tmp_path / "nvme")
    for prompt in (*PROMPTS, *PROMPTS):
        served.ask(prompt)
    served.flush()
    assert not served.engine.stats().offload.active


def test_a_slow_disk_loses_against_computing(serve: Serve) -> None:
    served = serve()
    served.push_out()
    assert served.engine._restorer is not None
    policy = served.engine._restorer._break_even
    for _ in range(50):
        policy.observe_read(1, 10.0)
        policy.observe_prefill(1_000_000, 1.0)
    assert served.ask(PROMPTS[0]) == 0
    assert served.engine.stats().offload.num_misses > 0
