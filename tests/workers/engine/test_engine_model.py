"""The engine on the real model, against llama.cpp without the engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.engine import Recorder
from harness.model import model_path

from inferflux.broker.wire.requests import Message
from inferflux.config.settings import LlamaCppSettings, RuntimeSettings, SchedulerSettings
from inferflux.workers.backends.backend import Backend, SamplingParams
from inferflux.workers.backends.opening import open_backend
from inferflux.workers.engine.engine import Engine
from inferflux.workers.engine.job import Job
from inferflux.workers.render import Renderer

pytestmark = pytest.mark.model

GREEDY = SamplingParams(temperature=0.0)
QUESTIONS = (
    "What is the capital of France? Answer with one word.",
    "Name three fruits.",
    "Why is the sky blue? Answer in one sentence.",
    "Write a haiku about a lighthouse and the sea around it, please.",
    "2 + 2 =",
    "Tell me who wrote Hamlet, and when the play was first printed.",
)
SETTINGS = RuntimeSettings(
    scheduler=SchedulerSettings(max_batch_size=4, max_batch_tokens=64, chunked_prefill_tokens=32),
    llamacpp=LlamaCppSettings(context_length=512, threads=1),
)


class Served:
    """An engine on the real model, and what it reported."""

    def __init__(self) -> None:
        self.backend: Backend = open_backend("llamacpp", model_path(), SETTINGS)
        self.recorder = Recorder()
        self.engine = Engine(self.backend, SETTINGS.scheduler, SETTINGS.paged_kv, self.recorder)
        self.engine.start()
        self.renderer = Renderer(self.backend.tokenizer)

    def chat(self, question: str) -> tuple[int, ...]:
        return tuple(self.renderer.chat([Message(role="user", content=question)]))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.engine.close()


@pytest.fixture(autouse=True)
def _integrity(served: Served) -> Iterator[None]:
    yield
    served.engine.check_integrity()


@pytest.fixture(scope="module")
def reference(served: Served) -> Iterator[dict[str, list[int]]]:
    from harness.greedy import GreedyReference

    plain = GreedyReference(model_path(), num_threads=1)
    yield {question: plain.generate(served.chat(question), 24) for question in QUESTIONS}
    plain.close()


def test_greedy_is_llama_cpps_own_greedy_token_by_token(served: Served, reference: dict[str, list[int]]) -> None:
    for number, question in enumerate(QUESTIONS):
        job = Job(
            request=f"alone{number}",
            choice=0,
            prompt=served.chat(question),
            max_tokens=24,
            sampling=GREEDY,
            ignore_eos=True,
            salt=f"alone{number}",
        )
        served.engine.submit([job])
        assert served.recorder.wait(job.request).tokens == reference[question]


def test_greedy_stays_the_same_in_a_batch_with_shared_prefixes(served: Served, reference: dict[str, list[int]]) -> None:
    for number, question in enumerate(QUESTIONS):
        job = Job(
            request=f"batch{number}",
            choice=0,
            prompt=served.chat(question),
            max_tokens=24,
            sampling=GREEDY,
            ignore_eos=True,
            salt="batch",
        )
        served.engine.submit([job])
    for number, question in enumerate(QUESTIONS):
        choice = served.recorder.wait(f"batch{number}")
        assert choice.tokens == reference[question]
    assert served.engine.stats().prefix_hits > 0
    assert served.engine.stats().num_pages_used == 0


def test_samples_differ_by_seed_and_go_on_alike_when_resumed(served: Served) -> None:
    prompt = served.chat("Tell me a story.")
    jobs = [
        Job(
            request="story",
            choice=number,
            prompt=prompt,
            max_tokens=16,
            sampling=SamplingParams(temperature=0.9, top_p=0.95, seed=number, repetition_penalty=1.1),
            ignore_eos=True,
        )
        for number in range(3)
    ]
    served.engine.submit(jobs)
    whole = [served.recorder.wait("story", number).tokens for number in range(3)]
    assert len({tuple(tokens) for tokens in whole}) == 3
    for job, tokens in zip(jobs, whole, strict=True):
        resumed = Job(
            request=f"resumed{job.choice}",
            choice=0,
            prompt=prompt,
            max_tokens=16,
            sampling=job.sampling,
            ignore_eos=True,
            resumed=tuple(tokens[:7]),
        )
        served.engine.submit([resumed])
        assert served.recorder.wait(resumed.request).tokens == tokens[7:]


def test_the_model_ends_by_itself_and_says_something_sensible(served: Served) -> None:
    served.engine.submit(
        [Job(request="paris", choice=0, prompt=served.chat(QUESTIONS[0]), max_tokens=40, sampling=GREEDY)]
    )
    choice = served.recorder.wait("paris")
    assert choice.finish_reason == "stop"
    assert "Paris" in choice.text
    assert "<|im_end|>" not in choice.text


def test_the_backend_holds_what_the_slot_table_says(served: Served) -> None:
    """Idle slots keep what the cache counts on."""
    scheduler = served.engine._scheduler
    assert scheduler is not None
    served.engine.submit([Job(request="fill", choice=0, prompt=served.chat("Hello!"), max_tokens=4, sampling=GREEDY)])
    served.recorder.wait("fill")
    scheduler.check_integrity()
    for slot in range(scheduler.capacity.max_sequences):
        num_held = len(scheduler.slots.held(slot)) * scheduler.capacity.page_size
        assert served.backend.num_computed(slot) >= num_held
