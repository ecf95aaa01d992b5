"""The sampler against plain arithmetic, on logits of the test's choice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from harness.model import model_path

from inferflux.workers.backends.backend import Chunk, SamplingParams

if TYPE_CHECKING:
    from inferflux.workers.backends.llamacpp_sampler import Row, Sampler

pytestmark = pytest.mark.model

LOGITS = (1.0, 2.5, 0.5, 2.0, -1.0, 2.4)


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    model_path()
    from inferflux.workers.backends.llamacpp_sampler import Sampler

    sampler = Sampler(len(LOGITS))
    yield sampler
    sampler.close()


def row() -> Row:
    import numpy as np

    return np.array(LOGITS, dtype=np.float32)


def draw(sampler: Sampler, history: tuple[int, ...] = (), num_prompt: int = 0, **params: object) -> int:
    chunk = Chunk(
        slot=0,
        start=0,
        tokens=(0,),
        block_table=(),
        sampling=SamplingParams(**params),  # type: ignore[arg-type]
        history=history,
        num_prompt_tokens=num_prompt,
    )
    token = sampler.sample(row(), chunk).token
    assert token is not None
    return token


def tally(sampler: Sampler, count: int = 3000, **params: object) -> Counter[int]:
    return Counter(draw(sampler, seed=seed, **params) for seed in range(count))


def test_zero_temperature_takes_the_likeliest(sampler: Sampler) -> None:
    assert draw(sampler, temperature=0.0) == 1


def test_draws_follow_the_distribution(sampler: Sampler) -> None:
    count = 3000
    total = sum(map(math.exp, LOGITS))
    drawn = tally(sampler, count)
    for token, logit in enumerate(LOGITS):
        expected = count * math.exp(logit) / total
        assert abs(drawn[token] - expected) < 5 * math.sqrt(expected)


def test_positions_draw_independently(sampler: Sampler) -> None:
    drawn = Counter(draw(sampler, history=(0,) * position, seed=5) for position in range(300))
    assert len(drawn) >= 5
    again = [draw(sampler, history=(0,) * position, seed=5) for position in range(300)]
    assert Counter(again) == drawn


@pytest.mark.parametrize(
    ("params", "possible"),
    [
        ({"top_k": 2}, {1, 5}),
        ({"top_p": 0.5}, {1, 5}),
        ({"min_p": 0.55}, {1, 3, 5}),
        ({"top_k": 1}, {1}),
        ({"logit_bias": ((4, 100.0),)}, {4}),
        ({"logit_bias": ((1, -100.0),), "top_k": 2}, {3, 5}),
        ({"temperature": 0.01}, {1}),
    ],
)
def test_filters_leave_what_they_say(sampler: Sampler, params: dict[str, object], possible: set[int]) -> None:
    assert set(tally(sampler, 300, **params)) == possible


def test_a_bias_counts_for_greedy_too(sampler: Sampler) -> None:
    assert draw(sampler, temperature=0.0, logit_bias=((4, 100.0),)) == 4


def test_presence_and_frequency_count_generated_tokens_alone(sampler: Sampler) -> None:
    history = (1, 1, 1, 5)
    assert draw(sampler, history, 4, temperature=0.0, presence_penalty=2.0) == 1
    assert draw(sampler, history, 0, temperature=0.0, presence_penalty=2.0) == 3
    assert draw(sampler, history, 0, temperature=0.0, frequency_penalty=0.3) == 5


def test_repetition_counts_the_prompt_too(sampler: Sampler) -> None:
    assert draw(sampler, (1,), 1, temperature=0.0, repetition_penalty=1.5) == 5


def test_logprobs_are_those_of_the_unmodified_distribution(sampler: Sampler) -> None:
    params = SamplingParams(temperature=0.0, logit_bias=((4, 100.0),), num_logprobs=2)
    sample = sampler.sample(row(), Chunk(slot=0, start=0, tokens=(0,), block_table=(), sampling=params))
    log_total = math.log(sum(map(math.exp, LOGITS)))
    assert sample.logprob is not None
    assert (sample.logprob.token, sample.logprob.logprob) == (4, pytest.approx(-1.0 - log_total, abs=1e-5))
    assert [entry.token for entry in sample.top] == [1, 5]
    assert sample.top[0].logprob == pytest.approx(2.5 - log_total, abs=1e-5)


def test_many_different_parameters_do_not_pile_up(sampler: Sampler) -> None:
    from inferflux.workers.backends.llamacpp_sampler import MAX_CHAINS

    for number in range(3 * MAX_CHAINS):
        draw(sampler, top_k=3, temperature=1.0 + number / 1000)
    assert len(sampler._chains) == MAX_CHAINS
