"""The forward pass of a decoder-only model over paged keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .architecture import Architecture
from .exchange import Exchange
from .operations import Layer, Operations, Pages
from .rope import rope_table
from .step import Step
from .weights import Weights


class Decoder:
    """Chunks of prompts and single tokens go through together; `architecture` is this rank's share of the model."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Weights,
        operations: Operations,
        exchange: Exchange,
        length: int,
        device: torch.device,
    ) -> None:
        self._architecture = architecture
        self._weights = weights
        self._operations = operations
        self._exchange = exchange
        cosines, sines = rope_table(architecture.rope, architecture.head_size, length)
        self._rope = cosines.to(device), sines.to(device)
        self._layers = [
            Layer(
                architecture.num_heads,
                architecture.num_kv_heads,
                architecture.head_size,
                window,
                block.head_norms,
                architecture.norm_epsilon,
            )
            for window, block in zip(architecture.windows, weights.blocks, strict=True)
        ]

    def make_pages(self, num_pages: int, page_size: int) -> list[Pages]:
        """Empty pages for every layer."""
        architecture = self._architecture
        return [self._operations.make_pages(num_pages, page_size, architecture) for _ in range(architecture.num_layers)]

    def hidden(self, step: Step, pages: Sequence[Pages]) -> Tensor:
        """The normalized last states, (tokens, hidden size). Keys and values of the new tokens are stored."""
        operations, weights, epsilon = self._operations, self._weights, self._architecture.norm_epsilon
        residual = operations.embed(step.tokens, weights.table)
        rows = operations.norm(residual, weights.blocks[0].attention_norm, epsilon)
        for index, (block, layer, own) in enumerate(zip(weights.blocks, self._layers, pages, strict=True)):
            seen = operations.attend(block.qkv(rows), step, own, self._rope, layer)
            rows = self._exchange.add(block.output(seen))
            rows = operations.add_norm(residual, rows, block.feed_forward_norm, epsilon)
            rows = self._exchange.add(block.down(operations.gate(block.gate_up(rows))))
            last = index + 1 == len(weights.blocks)
            norm = weights.norm if last else weights.blocks[index + 1].attention_norm
            rows = operations.add_norm(residual, rows, norm, epsilon)
        return rows

    def logits(self, hidden: Tensor) -> Tensor:
        """Of normalized states: (rows, vocabulary), fp32."""
        return self._exchange.join(self._weights.head(hidden)).float()
