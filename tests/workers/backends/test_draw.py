"""The draw against the cumulative distribution it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from inferflux.workers.backends.draw import BLOCK, draw

SIZES = (1, 5, BLOCK, BLOCK + 1, 5 * BLOCK - 3)


def logits(size: int) -> np.ndarray:
    return np.random.default_rng(size).normal(size=size).astype(np.float32) * 3


@pytest.mark.parametrize("size", SIZES)
def test_it_inverts_the_cumulative_distribution(size: int) -> None:
    row = logits(size)
    weights = np.exp(row.astype(np.float64) / 0.7)
    cumulative = np.cumsum(weights / weights.sum())
    for uniform in np.linspace(0.0, 1.0, 257, endpoint=False):
        token = draw(row, 0.7, float(uniform))
        below = cumulative[token - 1] if token else 0.0
        assert below - 1e-5 <= uniform <= cumulative[token] + 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_what_cannot_be_is_never_drawn(size: int) -> None:
    row = np.full(size, -np.inf, dtype=np.float32)
    row[size // 2] = 1.0
    for uniform in (0.0, 0.5, 1.0 - 2.0**-53):
        assert draw(row, 1.0, uniform) == size // 2
