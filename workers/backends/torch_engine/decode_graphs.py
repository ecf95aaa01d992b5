"""CUDA graphs of decode steps: a step of many small kernels is replayed with one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inferflux.config.logs import get_logger

from .step import Step

log = get_logger("torch")

LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
NUM_WARMUPS = 2

Compute = Callable[[Step], Tensor]


class DecodeGraphs:
    """One graph for each rung of the ladder. A batch takes the next rung, its last rows compute in a spare page.

    `compute` gives logits of a step. Every graph reads and writes buffers that stay where they are.
    """

    def __init__(self, compute: Compute, max_sequences: int, length: int, page_size: int, spare_page: int) -> None:
        self._compute = compute
        self._length = length
        self._spare_page = spare_page
        self._page_size = page_size
        self._width = -(-length // page_size)
        self._rungs = [rung for rung in LADDER if rung < max_sequences] + [max_sequences]
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, Step, Tensor]] = {}

    def capture(self, device: torch.device) -> None:
        """Largest first, so that the smaller ones find their memory in its pool. What does not fit is run eagerly."""
        pool = None
        for rung in reversed(self._rungs):
            step = self.blank(rung, device)
            try:
                for _ in range(NUM_WARMUPS):
                    self._compute(step)
                torch.cuda.synchronize(device)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    logits = self._compute(step)
            except RuntimeError as error:  # out of memory is one, too
                log.warning("a decode graph cannot be captured", rows=rung, reason=str(error).partition("\n")[0])
                torch.cuda.empty_cache()
                continue
            pool = graph.pool()
            self._captured[rung] = graph, step, logits
        log.info("decode graphs captured", rungs=sorted(self._captured))

    def run(self, step: Step) -> Tensor | None:
        """Logits of a step in which each sequence has one token and wants the next; None when no graph takes it."""
        count = step.num_sequences
        rung = next((each for each in self._rungs if each >= count and each in self._captured), None)
        if rung is None or step.max_query > 1 or step.outputs.shape[0] != count:
            return None
        graph, own, logits = self._captured[rung]
        self.fill(own, step)
        graph.replay()
        return logits[:count]

    def blank(self, rung: int, device: torch.device) -> Step:
        """A step whose rows all compute the first token of the spare page."""

        def filled(shape: tuple[int, ...], value: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        return Step(
            tokens=filled((rung,), 0),
            positions=filled((rung,), 0),
            cells=filled((rung,), self._spare_page * self._page_size, torch.int64),
            starts=torch.arange(rung + 1, dtype=torch.int32, device=device),
            lengths=filled((rung,), 1),
            block_tables=filled((rung, self._width), self._spare_page),
            outputs=torch.arange(rung, device=device),
            max_query=1,
            max_length=self._length,
        )

    def fill(self, own: Step, step: Step) -> None:
        """Put a batch into a rung's buffers; rows that it does not need go back to the spare page."""
        count, width = step.num_sequences, step.block_tables.shape[1]
        own.tokens[:count].copy_(step.tokens)
        own.positions[:count].copy_(step.positions)
        own.cells[:count].copy_(step.cells)
        own.lengths[:count].copy_(step.lengths)
        own.block_tables[:count, :width].copy_(step.block_tables)
        own.positions[count:].zero_()
        own.lengths[count:].fill_(1)
        own.cells[count:].fill_(self._spare_page * self._page_size)
        own.block_tables[count:].fill_(self._spare_page)
