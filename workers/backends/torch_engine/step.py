"""One forward pass: the tokens of all chunks side by side, and where their keys and values lie."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import msgspec
import torch
from torch import Tensor

from ..backend import Chunk


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
    counts = [len(chunk.tokens) for chunk in chunks]
    ends = list(accumulate(counts))
    lengths = [chunk.start + count for chunk, count in zip(chunks, counts, strict=True)]
    width = max(-(-length // page_size) for length in lengths)
    tables = torch.zeros((len(chunks), width), dtype=torch.int32)
    for row, (chunk, length) in enumerate(zip(chunks, lengths, strict=True)):
        num_pages = -(-length // page_size)
        tables[row, :num_pages] = torch.tensor(chunk.block_table[:num_pages], dtype=torch.int32)
    positions = torch.cat([torch.arange(chunk.start, length) for chunk, length in zip(chunks, lengths, strict=True)])
    rows = torch.repeat_interleave(torch.arange(len(chunks)), torch.tensor(counts))
    cells = tables[rows, positions // page_size].to(torch.int64) * page_size + positions % page_size
    tokens = [token for chunk in chunks for token in chunk.tokens]
    outputs = [end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.sampling is not None]

    def move(tensor: Tensor) -> Tensor:
        """A GPU copies while the host goes on; only the drawn tokens are waited for."""
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    return Step(
        tokens=move(torch.tensor(tokens, dtype=torch.int32)),
        positions=move(positions.to(torch.int32)),
        cells=move(cells),
        starts=move(torch.tensor([0, *ends], dtype=torch.int32)),
        lengths=move(torch.tensor(lengths, dtype=torch.int32)),
        block_tables=move(tables),
        outputs=move(torch.tensor(outputs, dtype=torch.int64)),
        max_query=max(counts),
        max_length=max(lengths),
    )
