"""A decoder on the CPU whose blocks are computed in one call of the kernels: Python's part of a step is once, not 240
times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .architecture import Architecture
from .decoder import Decoder
from .exchange import Exchange, NoExchange
from .native_kernels import Block, Blocks, address, layout_of
from .native_operations import NativeLinear, NativeOperations
from .operations import Operations, Pages
from .step import Step
from .weights import BlockWeights, Weights


class NativeDecoder(Decoder):
    """Bit for bit what `Decoder` computes with the same operations."""

    def __init__(self, architecture: Architecture, weights: Weights, operations: NativeOperations, length: int) -> None:
        super().__init__(architecture, weights, operations, NoExchange(), length, torch.device("cpu"))
        self._kernels = operations.kernels
        own = [_block(each, layer.window) for each, layer in zip(weights.blocks, self._layers, strict=True)]
        self._own = (Block * len(own))(*own)
        cosines, sines = (table.data_ptr() for table in self._rope)
        self._blocks = Blocks(
            self._own, len(own), operations.kv_kind, weights.norm.data_ptr(), cosines, sines, architecture.norm_epsilon
        )

    def hidden(self, step: Step, pages: Sequence[Pages]) -> Tensor:
        for block, own in zip(self._own, pages, strict=True):
            block.keys, block.values = own.keys.data_ptr(), own.values.data_ptr()
        residual = self._operations.embed(step.tokens, self._weights.table)
        return self._kernels.decode(self._blocks, step, layout_of(self._layers[0], step, pages[0]), residual)


def make_decoder(
    architecture: Architecture,
    weights: Weights,
    operations: Operations,
    exchange: Exchange,
    length: int,
    device: torch.device,
) -> Decoder:
    """In one call where no rank waits for a sum and no other library multiplies."""
    if isinstance(operations, NativeOperations) and isinstance(exchange, NoExchange) and not operations.uses_onednn:
        return NativeDecoder(architecture, weights, operations, length)
    return Decoder(architecture, weights, operations, exchange, length, device)


def _block(weights: BlockWeights, window: int | None) -> Block:
    matrices = [weights.qkv, weights.output, weights.gate_up, weights.down]
    query_norm, key_norm = weights.head_norms or (None, None)
    return Block(
        *(each.matrix for each in matrices if isinstance(each, NativeLinear)),
        weights.attention_norm.data_ptr(),
        address(query_norm),
        address(key_norm),
        weights.feed_forward_norm.data_ptr(),
        None,
        None,
        window or 0,
    )
