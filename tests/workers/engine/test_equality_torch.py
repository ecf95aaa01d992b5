"""Greedy text of the torch backend is the same however it came about: no rounding depends on the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.asked import Asked
from harness.engine import TIMEOUT_S

from inferflux.config.settings import PagedKVSettings, RuntimeSettings, SchedulerSettings, TorchSettings
from inferflux.workers.backends.backend import SamplingParams
from inferflux.workers.engine.breakeven import BreakEven

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("integrity")]

STORY = (
    "The harbour lay quiet under the morning light. Anna had come down to the pier with a basket of bread, and the "
    "fishermen, who knew her since she was a child, made room on the bench. There had been a storm in the night. "
)
QUESTIONS = ("What did Anna bring?", "Who made room?", "Tell the story again in one short sentence.")
NUM_PAGES = 40
"""Room for a few of the prompts at a time: with 32 of them, sequences give way to each other."""


def open_asked(root: Path) -> Asked:
    settings = RuntimeSettings(
        scheduler=SchedulerSettings(max_batch_size=32, max_batch_tokens=256, chunked_prefill_tokens=256),
        paged_kv=PagedKVSettings(cpu_pages=NUM_PAGES, nvme_path=str(root)),
        torch=TorchSettings(device="cpu", dtype="float32"),
    )
    return Asked("torch", settings, [f"{STORY}{question}" for question in QUESTIONS])


def test_with_a_cached_beginning(asked: Asked) -> None:
    for number in range(len(QUESTIONS)):
        choice = asked.ask(number, "shared")
        assert choice.tokens == asked.alone[number].tokens
    assert choice.updates[0].num_cached > 32


def test_in_small_chunks(asked: Asked) -> None:
    asked.engine.configure(SchedulerSettings(max_batch_size=4, max_batch_tokens=24, chunked_prefill_tokens=7))
    for number in range(len(QUESTIONS)):
        assert asked.ask(number, f"chunks{number}").tokens == asked.alone[number].tokens


def test_among_32_that_push_each_other_out(asked: Asked) -> None:
    num_before = asked.engine.stats().num_preemptions
    jobs = [asked.job(index % len(QUESTIONS), f"crowd{index}") for index in range(32)]
    asked.engine.submit(jobs)
    for index, job in enumerate(jobs):
        assert asked.recorder.wait(job.request).tokens == asked.alone[index % len(QUESTIONS)].tokens
    assert asked.engine.stats().num_preemptions > num_before


def test_resumed_after_some_tokens(asked: Asked) -> None:
    for number, alone in enumerate(asked.alone):
        job = asked.job(number, f"resumed{number}", resumed=tuple(alone.tokens[:5]))
        asked.engine.submit([job])
        assert asked.recorder.wait(job.request).tokens == alone.tokens[5:]


def test_a_drawn_text_is_the_same_too(asked: Asked) -> None:
    sampling = SamplingParams(temperature=0.9, top_p=0.95, seed=7, presence_penalty=0.3)
    texts = []
    for index in range(3):
        jobs = [asked.job(0, f"drawn{index}/{other}", sampling=sampling) for other in range(index + 1)]
        asked.engine.submit(jobs)
        texts += [tuple(asked.recorder.wait(job.request).tokens) for job in jobs]
    assert len(set(texts)) == 1


def test_restored_from_the_disk(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked.engine._offload is not None
    monkeypatch.setattr(BreakEven, "prefers_reading", lambda *_: True)
    monkeypatch.setattr(BreakEven, "patience_s", lambda *_: TIMEOUT_S)
    num_before = asked.engine.stats().offload.num_reads
    for index in range(12):
        asked.ask(index % len(QUESTIONS), f"pushes{index}")
    assert asked.engine._offload.flush(TIMEOUT_S)
    for number, alone in enumerate(asked.alone):
        choice = asked.ask(number, f"alone{number}")
        assert choice.tokens == alone.tokens
        assert choice.updates[0].num_cached > 64
    assert asked.engine.stats().offload.num_reads > num_before
