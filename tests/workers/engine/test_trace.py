"""Thousands of steps of a random life: nothing leaks, everything ends once, and every token is the right one."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.deferred import DeferredPages, DeferredStreams, Deferring
from harness.model import model_path
from harness.streams import StreamsBackend, answer
from harness.trace import Trace, TracedEngine

from inferflux.config.settings import (
    LlamaCppSettings,
    PagedKVSettings,
    RuntimeSettings,
    SchedulerSettings,
    StubSettings,
)
from inferflux.workers.backends.opening import open_backend

SCHEDULER = SchedulerSettings(max_batch_size=4, max_batch_tokens=128, chunked_prefill_tokens=32)


def check_answers(trace: Trace, engine: TracedEngine) -> None:
    for job in trace.jobs:
        choice = engine.recorder.choices.get((job.request, job.choice))
        tokens = [] if choice is None else choice.tokens
        expected = answer(job.prompt, job.max_tokens)
        assert tokens == expected[: len(tokens)], job.request
        assert len(tokens) == len(expected) or job.request in trace.cancelled, job.request


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("disk", ["no disk", "a disk", "a small disk"])
def test_slots_with_and_without_a_disk(seed: int, disk: str, tmp_path: Path) -> None:
    trace = Trace(seed, 3000)
    paged_kv = PagedKVSettings(
        nvme_path=None if disk == "no disk" else str(tmp_path), nvme_bytes=4000 if disk == "a small disk" else 1 << 20
    )
    backend = StreamsBackend(SCHEDULER, context_length=256)
    engine = TracedEngine(trace, backend, SCHEDULER, paged_kv)
    engine.play()
    check_answers(trace, engine)
    stats = engine.stats()
    assert stats.num_preemptions > 20
    assert stats.prefix_hits > 1000
    assert engine.num_turns >= 2900
    if disk != "no disk":
        assert stats.offload.num_writes > 5
        assert stats.offload.active


@pytest.mark.parametrize("seed", [1, 2])
def test_shared_pages_that_are_too_few(seed: int) -> None:
    """The stub's pool is smaller than its slots, so sequences run out of pages too."""
    trace = Trace(seed, 3000)
    paged_kv = PagedKVSettings(cpu_pages=24)
    settings = RuntimeSettings(
        scheduler=SCHEDULER, paged_kv=paged_kv, stub=StubSettings(step_s=0.0, context_length=256)
    )
    engine = TracedEngine(trace, open_backend("stub", None, settings), SCHEDULER, paged_kv)
    engine.play()
    assert engine.stats().num_preemptions > 20


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", [DeferredStreams, DeferredPages])
def test_much_happens_while_a_device_computes(seed: int, kind: type[Deferring], tmp_path: Path) -> None:
    trace = Trace(seed, 3000)
    paged_kv = PagedKVSettings(nvme_path=str(tmp_path))
    device = kind(SCHEDULER, context_length=256, num_pages=24 if kind is DeferredPages else 0)
    engine = TracedEngine(trace, device, SCHEDULER, paged_kv)
    engine.act_during_steps(device)
    engine.play()
    check_answers(trace, engine)
    assert engine.num_acts_in_flight > 100
    stats = engine.stats()
    assert stats.num_preemptions > 20
    assert stats.prefix_hits > 1000
    assert stats.offload.active


@pytest.mark.model
def test_the_same_life_on_llama_cpp(tmp_path: Path) -> None:
    trace = Trace(1, 200, max_tokens=8)
    paged_kv = PagedKVSettings(nvme_path=str(tmp_path))
    settings = RuntimeSettings(
        scheduler=SCHEDULER, paged_kv=paged_kv, llamacpp=LlamaCppSettings(context_length=256, threads=1)
    )
    engine = TracedEngine(trace, open_backend("llamacpp", model_path(), settings), SCHEDULER, paged_kv)
    engine.play()
    stats = engine.stats()
    assert stats.num_preemptions > 0
    assert stats.offload.num_writes > 0
    assert stats.offload.active
