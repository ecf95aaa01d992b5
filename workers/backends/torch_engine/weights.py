"""A model's weights as the decoder wants them: projections fused, and only this rank's share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from inferflux.broker.errors import ConfigError

from .checkpoint import Checkpoint
from .operations import HeadNorms, Linear, Operations
from .shard import Shard


class BlockWeights(NamedTuple):
    """One layer: attention, then the gated network, each behind a norm."""

    attention_norm: Tensor
    qkv: Linear
    output: Linear
    head_norms: HeadNorms | None
    feed_forward_norm: Tensor
    gate_up: Linear
    down: Linear


class Weights(NamedTuple):
    """`table` (vocabulary, hidden size) looks tokens up; `head` gives logits of this rank's part of the vocabulary."""

    table: Tensor
    blocks: list[BlockWeights]
    norm: Tensor
    head: Linear
    num_bytes: int


class WeightReader:
    """Reads one tensor after the other, so that never more than one of them is in memory twice."""

    def __init__(
        self, checkpoint: Checkpoint, operations: Operations, shard: Shard, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._checkpoint = checkpoint
        self._operations = operations
        self._shard = shard
        self._device = device
        self._dtype = dtype
        self._architecture = checkpoint.architecture

    def read(self, on_progress: Callable[[float], None]) -> Weights:
        """`on_progress` is told the share of the layers that is read. Raises ConfigError naming a tensor that is
        missing or has an unexpected shape."""
        model = self._architecture
        table = self._tensor("model.embed_tokens.weight", model.vocab_size, model.hidden_size)
        table = table.to(self._device, self._dtype)
        blocks = []
        for layer in range(model.num_layers):
            blocks.append(self._block(f"model.layers.{layer}"))
            on_progress((layer + 1) / model.num_layers)
        last = table
        if not model.ties_embeddings:
            last = self._tensor("lm_head.weight", model.vocab_size, model.hidden_size)
        head = self._linear(last[self._shard.span(model.vocab_size)], None)
        matrices = [each for block in blocks for each in (block.qkv, block.output, block.gate_up, block.down)]
        num_bytes = table.nbytes + head.num_bytes + sum(matrix.num_bytes for matrix in matrices)
        return Weights(table, blocks, self._norm("model.norm", model.hidden_size), head, num_bytes)

    def _block(self, prefix: str) -> BlockWeights:
        model = self._architecture
        attention, network = f"{prefix}.self_attn", f"{prefix}.mlp"
        group = model.num_heads // model.num_kv_heads * model.head_size
        kv_heads = self._shard.span(model.num_kv_heads)
        query_rows = slice(kv_heads.start * group, kv_heads.stop * group)
        kv_rows = slice(kv_heads.start * model.head_size, kv_heads.stop * model.head_size)
        features = self._shard.span(model.feed_forward_size)
        norms = None
        if model.normalizes_heads:
            norms = HeadNorms(*(self._norm(f"{attention}.{each}_norm", model.head_size) for each in "qk"))
        return BlockWeights(
            self._norm(f"{prefix}.input_layernorm", model.hidden_size),
            self._fused(
                [
                    (f"{attention}.{each}_proj", rows)
                    for each, rows in zip("qkv", (query_rows, kv_rows, kv_rows), strict=True)
                ],
                (model.num_heads * model.head_size, *(model.num_kv_heads * model.head_size,) * 2),
                biased=model.qkv_bias,
            ),
            self._columns(
                f"{attention}.o_proj", model.num_heads * model.head_size, query_rows, biased=model.output_bias
            ),
            norms,
            self._norm(f"{prefix}.post_attention_layernorm", model.hidden_size),
            self._fused(
                [(f"{network}.{each}_proj", features) for each in ("gate", "up")],
                (model.feed_forward_size,) * 2,
                biased=model.feed_forward_bias,
            ),
            self._columns(f"{network}.down_proj", model.feed_forward_size, features, biased=model.feed_forward_bias),
        )

    def _fused(self, parts: list[tuple[str, slice]], sizes: tuple[int, ...], *, biased: bool) -> Linear:
        """Several projections of the same rows as one, each cut to the rank's outputs."""
        hidden = self._architecture.hidden_size
        named = list(zip(parts, sizes, strict=True))
        weights = [self._tensor(f"{name}.weight", size, hidden)[rows] for (name, rows), size in named]
        biases = [self._tensor(f"{name}.bias", size)[rows] for (name, rows), size in named] if biased else None
        return self._linear(torch.cat(weights), None if biases is None else torch.cat(biases))

    def _columns(self, name: str, num_inputs: int, columns: slice, *, biased: bool) -> Linear:
        """A projection of the rank's own features. What ranks compute is added up, so only the first adds the bias."""
        weight = self._tensor(f"{name}.weight", self._architecture.hidden_size, num_inputs)[:, columns]
        bias = self._tensor(f"{name}.bias", self._architecture.hidden_size) if biased else None
        return self._linear(weight, bias if self._shard.rank == 0 else None)

    def _linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return self._operations.linear(weight, bias)

    def _norm(self, name: str, size: int) -> Tensor:
        dtype = self._operations.activation_dtype
        return self._tensor(f"{name}.weight", size).to(device=self._device, dtype=dtype).contiguous()

    def _tensor(self, name: str, *shape: int) -> Tensor:
        tensor = self._checkpoint.tensor(name)
        if tuple(tensor.shape) != shape:
            raise ConfigError(f"model.path: the tensor {name} has the shape {tuple(tensor.shape)} instead of {shape}")
        return tensor
