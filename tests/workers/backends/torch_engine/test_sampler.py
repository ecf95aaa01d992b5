"""What penalties and biases do to a row, against their definitions."""

from __future__ import annotations

import random

import torch

from inferflux.workers.backends.backend import Chunk, SamplingParams
from inferflux.workers.backends.torch_engine.sampler import Sampler

VOCABULARY = 24


def adjusted(row: list[float], chunk: Chunk) -> list[float]:
    """A token after the other."""
    params, generated = chunk.sampling, list(chunk.history[chunk.num_prompt_tokens :])
    assert params is not None
    values = list(row)
    for token in set(chunk.history):
        values[token] = (
            row[token] / params.repetition_penalty if row[token] > 0 else row[token] * params.repetition_penalty
        )
    for token in set(generated):
        values[token] -= params.presence_penalty + params.frequency_penalty * generated.count(token)
    for token, bias in params.logit_bias:
        values[token] += bias
    return values


def test_the_likeliest_token_is_that_of_the_penalized_row() -> None:
    draw = random.Random(5)
    chunks, rows = [], []
    for _ in range(200):
        history = [draw.randrange(VOCABULARY) for _ in range(draw.randint(2, 30))]
        biased = draw.sample(range(VOCABULARY), draw.choice((0, 0, 2)))
        params = SamplingParams(
            temperature=0.0,
            repetition_penalty=draw.choice((1.0, 1.5)),
            presence_penalty=draw.choice((0.0, 0.6)),
            frequency_penalty=draw.choice((0.0, 0.3)),
            logit_bias=tuple((token, draw.uniform(-2.0, 2.0)) for token in biased),
        )
        num_prompt_tokens = draw.randint(1, len(history))
        chunks.append(
            Chunk(
                slot=0,
                start=0,
                tokens=history,
                block_table=(),
                sampling=params,
                history=history,
                num_prompt_tokens=num_prompt_tokens,
            )
        )
        rows.append([draw.gauss(0.0, 2.0) for _ in range(VOCABULARY)])
    wanted = [adjusted(row, chunk) for row, chunk in zip(rows, chunks, strict=True)]
    expected = [values.index(max(values)) for values in wanted]
    plain = [row.index(max(row)) for row in rows]
    assert sum(one != other for one, other in zip(expected, plain, strict=True)) > 30
    samples = Sampler().draw(torch.tensor(rows), chunks).samples()
    assert [sample.token for sample in samples] == expected
