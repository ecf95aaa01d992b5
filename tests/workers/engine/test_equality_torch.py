"""Greedy text of the torch backend is the same however it came about: no rounding depends on the batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.engine import Choice, Recorder
from harness.model import model_path

from inferflux.broker.subjects import ServiceClass
from inferflux.broker.wire import Message
from inferflux.config.settings import PagedKVSettings, RuntimeSettings, SchedulerSettings, TorchSettings
from inferflux.workers.backends.backend import SamplingParams
from inferflux.workers.backends.opening import open_backend
from inferflux.workers.engine.engine import Engine
from inferflux.workers.engine.job import Job
from inferflux.workers.render import Renderer

pytestmark = pytest.mark.model

COUNT = 16
STORY = (
    "The harbour lay quiet under the morning light. Anna had come down to the pier with a basket of bread, and the "
    "fishermen, who knew her since she was a child, made room on the bench. There had been a storm in the night. "
)
QUESTIONS = ("What did Anna bring?", "Who made room?", "Tell the story again in one short sentence.")
BOUNDS = SchedulerSettings(max_batch_size=32, max_batch_tokens=256, chunked_prefill_tokens=256)
NUM_PAGES = 40
"""Room for a few of the prompts at a time: with 32 of them, sequences give way to each other."""


class Asked:
    """An engine, and what each question was answered when nothing else ran and nothing was cached."""

    def __init__(self) -> None:
        settings = RuntimeSettings(
            scheduler=BOUNDS,
            paged_kv=PagedKVSettings(cpu_pages=NUM_PAGES),
            torch=TorchSettings(device="cpu", dtype="float32"),
        )
        backend = open_backend("torch", model_path(), settings)
        self.recorder = Recorder()
        self.engine = Engine(backend, BOUNDS, settings.paged_kv, self.recorder)
        self.engine.start()
        self.renderer = Renderer(backend.tokenizer)
        self.num_jobs = 0
        self.alone = [self.ask(number, f"alone{number}") for number in range(len(QUESTIONS))]

    def job(
        self,
        number: int,
        salt: str,
        service_class: ServiceClass = ServiceClass.DEFAULT,
        resumed: tuple[int, ...] = (),
        sampling: SamplingParams | None = None,
    ) -> Job:
        self.num_jobs += 1
        message = Message(role="user", content=f"{STORY}{QUESTIONS[number]}")
        return Job(
            request=f"r{self.num_jobs}",
            choice=0,
            prompt=tuple(self.renderer.chat([message])),
            max_tokens=COUNT,
            sampling=sampling or SamplingParams(temperature=0.0),
            ignore_eos=True,
            salt=salt,
            service_class=service_class,
            resumed=resumed,
        )

    def ask(self, number: int, salt: str) -> Choice:
        job = self.job(number, salt)
        self.engine.submit([job])
        return self.recorder.wait(job.request)


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    asked = Asked()
    yield asked
    asked.engine.close()


@pytest.fixture(autouse=True)
def _integrity(asked: Asked) -> Iterator[None]:
    yield
    asked.engine.configure(BOUNDS)
    asked.engine.check_integrity()


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
