"""One forward pass: the tokens of all chunks side by side, and where their keys and values lie."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor

from ..backend import Chunk
from .transfer import upload


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors of a batch of B sequences with T new tokens in all, int32 unless said otherwise.

    `tokens` and `positions` (T,); `cells` (T,), int64: page * page size + offset of each new token; `starts` (B + 1,):
    where each sequence's tokens begin; `lengths` (B,): tokens of a sequence up to its last new one; `block_tables`
    (B, pages of the longest); `outputs` (R,), int64: the rows that logits are wanted of.
    """

    tokens: Tensor
    positions: Tensor
    cells: Tensor
    starts: Tensor
    lengths: Tensor
    block_tables: Tensor
    outputs: Tensor
    max_query: int
    max_length: int

    @property
    def num_sequences(self) -> int:
        return self.lengths.shape[0]


def make_step(chunks: Sequence[Chunk], page_size: int, device: torch.device) -> Step:
    """Lay out chunks. Those that want a token get a row of logits, in their order."""
    counts = np.array([len(chunk.tokens) for chunk in chunks])
    lengths = np.array([chunk.start for chunk in chunks]) + counts
    ends = counts.cumsum()
    used = -(-lengths // page_size)
    tables = np.zeros((len(chunks), used.max()), dtype=np.int32)
    for row, (chunk, num_pages) in enumerate(zip(chunks, used.tolist(), strict=True)):
        tables[row, :num_pages] = chunk.block_table[:num_pages]
    rows = np.arange(len(chunks)).repeat(counts)
    positions = np.arange(ends[-1]) + (lengths - ends)[rows]
    cells = tables[rows, positions // page_size].astype(np.int64) * page_size + positions % page_size
    tokens = [token for chunk in chunks for token in chunk.tokens]
    wanted = [chunk.sampling is not None for chunk in chunks]
    return Step(
        tokens=upload(np.array(tokens), torch.int32, device),
        positions=upload(positions, torch.int32, device),
        cells=upload(cells, torch.int64, device),
        starts=upload(np.concatenate(([0], ends)), torch.int32, device),
        lengths=upload(lengths, torch.int32, device),
        block_tables=upload(tables, torch.int32, device),
        outputs=upload((ends - 1)[wanted], torch.int64, device),
        max_query=int(counts.max()),
        max_length=int(lengths.max()),
    )
