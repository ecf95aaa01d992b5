"""Greedy text of the real model is the same however it came about: cached, restored, in chunks, after a preemption.

llama.cpp rounds differently in batches of another shape. How far that moves its logits is measured here with the
library alone; where a text goes another way, its two likeliest tokens must have been closer than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.engine import Choice, Recorder
from harness.model import model_path

from inferflux.broker.subjects import ServiceClass
from inferflux.broker.wire import Message
from inferflux.config.settings import LlamaCppSettings, PagedKVSettings, RuntimeSettings, SchedulerSettings
from inferflux.workers.backends.backend import SamplingParams
from inferflux.workers.backends.opening import open_backend
from inferflux.workers.engine.engine import Engine
from inferflux.workers.engine.job import Job
from inferflux.workers.render import Renderer

pytestmark = pytest.mark.model

COUNT = 16
GREEDY = SamplingParams(temperature=0.0, num_logprobs=2)
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


class Asked:
    """An engine on two slots with a disk, and what each question was answered when nothing else ran."""

    def __init__(self, root: Path) -> None:
        settings = RuntimeSettings(
            scheduler=BOUNDS,
            paged_kv=PagedKVSettings(nvme_path=str(root)),
            llamacpp=LlamaCppSettings(context_length=512, threads=1),
        )
        backend = open_backend("llamacpp", model_path(), settings)
        self.recorder = Recorder()
        self.engine = Engine(backend, BOUNDS, settings.paged_kv, self.recorder)
        self.engine.start()
        self.renderer = Renderer(backend.tokenizer)
        self.num_jobs = 0
        self.rounding = rounding([self.job(number, "").prompt for number in range(3)])
        self.alone = [self.ask(number, f"alone{number}") for number in range(len(QUESTIONS))]

    def job(self, number: int, salt: str, service_class: ServiceClass = ServiceClass.DEFAULT) -> Job:
        self.num_jobs += 1
        message = Message(role="user", content=f"{STORY}{QUESTIONS[number]}")
        return Job(
            request=f"r{self.num_jobs}",
            choice=0,
            prompt=tuple(self.renderer.chat([message])),
            max_tokens=COUNT,
            sampling=GREEDY,
            ignore_eos=True,
            salt=salt,
            service_class=service_class,
        )

    def ask(self, number: int, salt: str) -> Choice:
        job = self.job(number, salt)
        self.engine.submit([job])
        return self.recorder.wait(job.request)

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


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    asked = Asked(tmp_path_factory.mktemp("nvme"))
    yield asked
    asked.engine.close()


@pytest.fixture(autouse=True)
def _integrity(asked: Asked) -> Iterator[None]:
    yield
    asked.engine.configure(BOUNDS)
    asked.engine.check_integrity()


def test_restored_from_the_disk_or_still_in_memory(asked: Asked) -> None:
    """What lay on the disk is bit for bit what lay in memory, so these two are always alike."""
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
