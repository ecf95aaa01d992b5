"""A run in numbers: percentiles of time to first token and between tokens, and throughput."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from arrivals import Run
from load import percentile

QUANTILES = (0.5, 0.9, 0.99)


class Spread(msgspec.Struct, frozen=True):
    """Milliseconds: mean and percentiles."""

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


class Summary(msgspec.Struct, frozen=True):
    """`first` is the time to the first token, `between` the time between tokens, `whole` that of the whole answer;
    `first_by_turn` has the first for each turn of a conversation."""

    num_answers: int
    num_errors: int
    num_tokens: int
    took_s: float
    tokens_per_s: float
    answers_per_s: float
    first: Spread
    between: Spread
    whole: Spread
    first_by_turn: tuple[Spread, ...]


def summarize(run: Run) -> Summary:
    """Raises ValueError when nothing was answered."""
    answers = run.answers
    if not answers:
        raise ValueError(f"nothing was answered: {'; '.join(sorted(set(run.errors)))}")
    num_tokens = sum(answer.num_tokens for answer in answers)
    return Summary(
        num_answers=len(answers),
        num_errors=len(run.errors),
        num_tokens=num_tokens,
        took_s=round(run.took_s, 3),
        tokens_per_s=round(num_tokens / run.took_s, 2),
        answers_per_s=round(len(answers) / run.took_s, 3),
        first=spread([answer.first_s for answer in answers]),
        between=spread([gap_s for answer in answers for gap_s in answer.gaps_s]),
        whole=spread([answer.total_s for answer in answers]),
        first_by_turn=tuple(spread([answer.first_s for answer in turn]) for turn in run.turns if turn),
    )


def spread(values_s: Sequence[float]) -> Spread:
    if not values_s:
        return Spread(0.0, 0.0, 0.0, 0.0)
    quantiles = (round(percentile(values_s, quantile) * 1000, 3) for quantile in QUANTILES)
    return Spread(round(sum(values_s) / len(values_s) * 1000, 3), *quantiles)
