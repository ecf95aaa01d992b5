"""Greedy text of the real model is the same however it came about: cached, restored, in chunks, after a preemption.

llama.cpp rounds differently in batches of another shape. How far that moves its logits is measured here with the
library alone; where a text goes another way, its two likeliest tokens must have been closer than that.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import asked as harness
from harness.asked import COUNT
from harness.engine import TIMEOUT_S, Choice
from harness.model import model_path

from inferflux.broker.subjects import ServiceClass
from inferflux.config.settings import LlamaCppSettings, PagedKVSettings, RuntimeSettings, SchedulerSettings
from inferflux.workers.backends.backend import SamplingParams
from inferflux.workers.engine.breakeven import BreakEven

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("integrity")]

STORY = (
    "The harbour lay quiet under the morning light. Anna had come down to the pier with a basket of bread, and the "
    "fishermen, who knew her since she was a child, made room on the bench. There had been a storm in the night, and "
    "two of the boats had not come home. Nobody spoke about it. The old lighthouse keeper counted the sails again, as "
    "he did every morning, and wrote the number into his book. "
)
QUESTIONS = (
    "How many boats were missing?",
    "Who wrote the number into a book?",
    "What did Anna bring?",
    "Tell the story again in one short sentence.",
)
BOUNDS = SchedulerSettings(max_batch_size=2, max_batch_tokens=256, chunked_prefill_tokens=256)


def rounding(prompts: list[tuple[int, ...]]) -> float:
    """How far llama.cpp itself moves its logits when it gets a prompt in chunks (root mean square, worst prompt)."""
    from harness.greedy import GreedyReference

    plain = GreedyReference(model_path(), num_threads=1)
    moves = [plain.logits(prompt, len(prompt)) - plain.logits(prompt, 16) for prompt in prompts]
    plain.close()
    return max(float((move**2).mean() ** 0.5) for move in moves)


class Asked(harness.Asked):
    """On two slots with a disk."""

    def __init__(self, root: Path) -> None:
        settings = RuntimeSettings(
            scheduler=BOUNDS,
            paged_kv=PagedKVSettings(nvme_path=str(root)),
            llamacpp=LlamaCppSettings(context_length=512, threads=1),
        )
        likeliest = SamplingParams(temperature=0.0, num_logprobs=2)
        super().__init__("llamacpp", settings, [f"{STORY}{question}" for question in QUESTIONS], likeliest)
        self.rounding = rounding([self.job(number, "").prompt for number in range(3)])

    def compare(self, number: int, choice: Choice) -> bool:
        """Whether the text is the one that came alone. Fails unless the first difference is a near-tie: two logits,
        each of which rounding can move."""
        alone = self.alone[number]
        assert len(choice.tokens) == COUNT
        for position, (token, other) in enumerate(zip(alone.tokens, choice.tokens, strict=True)):
            if token != other:
                best, second = alone.logprobs[position].top
                gap = best.logprob - second.logprob
                assert gap < 2 * self.rounding, f"question {number}, token {position}: {gap} apart"
                return False
        return True


def open_asked(root: Path) -> Asked:
    return Asked(root)


def test_restored_from_the_disk_or_still_in_memory(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lay on the disk is bit for bit what lay in memory, so these two are always alike."""
    monkeypatch.setattr(BreakEven, "prefers_reading", lambda *_: True)
    monkeypatch.setattr(BreakEven, "patience_s", lambda *_: TIMEOUT_S)
    for number in range(len(QUESTIONS)):
        restored = asked.ask(number, f"alone{number}")
        assert restored.updates[0].num_cached > 64
        cached = asked.ask(number, f"alone{number}")
        assert cached.tokens == restored.tokens
        asked.compare(number, restored)
    assert asked.engine.stats().offload.num_reads >= len(QUESTIONS) - 2


def test_with_a_shared_beginning(asked: Asked) -> None:
    same = [asked.compare(number, asked.ask(number, "shared")) for number in range(len(QUESTIONS))]
    assert sum(same) >= len(same) // 2


def test_in_small_chunks(asked: Asked) -> None:
    asked.engine.configure(SchedulerSettings(max_batch_size=2, max_batch_tokens=24, chunked_prefill_tokens=16))
    same = [asked.compare(number, asked.ask(number, f"chunks{number}")) for number in range(len(QUESTIONS))]
    assert sum(same) >= len(same) // 2


def test_after_a_preemption(asked: Asked) -> None:
    num_before = asked.engine.stats().num_preemptions
    same = []
    for number in range(len(QUESTIONS)):
        batch = [asked.job(number, f"preempted{number}", ServiceClass.BATCH) for _ in range(2)]
        asked.engine.submit(batch)
        for job in batch:
            asked.recorder.wait_for_tokens(job.request, 3)
        above = [asked.job((number + shift) % len(QUESTIONS), "above", ServiceClass.PRIORITY) for shift in (1, 2)]
        asked.engine.submit(above)
        same += [asked.compare(number, asked.recorder.wait(job.request)) for job in batch]
        for job in above:
            asked.recorder.wait(job.request)
    assert asked.engine.stats().num_preemptions > num_before
    assert sum(same) >= len(same) // 2
