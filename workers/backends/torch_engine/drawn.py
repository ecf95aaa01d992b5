"""What was drawn for a batch, while it is on its way from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backend import Logprob, Sample
from .transfer import Fence


class Described(NamedTuple):
    """Natural-log probabilities of some rows: `chosen` (rows,) of the drawn token, `ids` and `values` (rows, most) of
    the likeliest, of which a row was asked for `counts`."""

    rows: Sequence[int]
    counts: Sequence[int]
    chosen: Tensor
    ids: Tensor
    values: Tensor

    def samples(self, tokens: Sequence[int]) -> dict[int, Sample]:
        """By row; `tokens` has all rows'."""
        listed = zip(self.rows, self.counts, self.chosen.tolist(), self.ids.tolist(), self.values.tolist(), strict=True)
        return {
            row: Sample(
                tokens[row],
                Logprob(tokens[row], value),
                tuple(Logprob(token, other) for token, other in zip(ids[:count], values[:count], strict=True)),
            )
            for row, count, value, ids, values in listed
        }


class Drawn(NamedTuple):
    """A token for each row, and what is known about some."""

    tokens: Tensor
    described: Described | None = None

    def samples(self) -> list[Sample]:
        """One for each row, behind the fence."""
        tokens: list[int] = self.tokens.tolist()
        described = {} if self.described is None else self.described.samples(tokens)
        return [described.get(row) or Sample(token) for row, token in enumerate(tokens)]


class Embedded(NamedTuple):
    """The sum of a prompt's states."""

    total: Tensor

    def samples(self) -> list[Sample]:
        """One, of unit length, behind the fence."""
        norm = float(self.total.norm())
        return [Sample(embedding=tuple((self.total / norm if norm else self.total).tolist()))]


class Part(NamedTuple):
    """Samples of some chunks of a batch."""

    chunks: Sequence[int]
    drawn: Drawn | Embedded


class LaunchedBatch:
    """A batch that the device has been given. Chunks that no part is about get an empty sample."""

    def __init__(self, num_chunks: int, parts: Sequence[Part], device: torch.device) -> None:
        self._num_chunks = num_chunks
        self._parts = parts
        self._fence = Fence(device)

    def result(self) -> list[Sample]:
        """One sample for each chunk. Here alone the host waits for the device, and here it hears of its failures."""
        self._fence.wait()
        samples = [Sample()] * self._num_chunks
        for chunks, drawn in self._parts:
            for index, sample in zip(chunks, drawn.samples(), strict=True):
                samples[index] = sample
        return samples
