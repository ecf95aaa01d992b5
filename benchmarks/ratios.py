"""Ratios of paired measurements: the geometric mean and its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

# Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom; beyond, the normal's 1.96 is close enough.
_T95 = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13,
    2.12, 2.11, 2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04,
)  # fmt: skip


class Ratio(msgspec.Struct, frozen=True):
    """Geometric mean of ours / theirs over all pairs, with the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float
    num_pairs: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}] over {self.num_pairs} pairs"


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The ratio of measurements that were taken in pairs, one right after the other. Raises ValueError without any."""
    if not ours or len(ours) != len(theirs):
        raise ValueError("pairs need as many of ours as of theirs")
    logs = [math.log(one / other) for one, other in zip(ours, theirs, strict=True)]
    mean = sum(logs) / len(logs)
    half = 0.0
    if len(logs) > 1:
        deviation = math.sqrt(sum((each - mean) ** 2 for each in logs) / (len(logs) - 1))
        half = _T95[min(len(logs) - 1, 30) - 1] * deviation / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))
