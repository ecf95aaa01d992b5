"""What a decoder is made of, behind one seam: plain torch here, native code or CUDA kernels elsewhere."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .architecture import Architecture
from .step import Step


class Pages(NamedTuple):
    """Keys and values of one layer, page by page. Only the first dimension, the page, is common to all layouts."""

    keys: Tensor
    values: Tensor

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class HeadNorms(NamedTuple):
    """Weights of shape (head size,) for each head of queries and of keys."""

    query: Tensor
    key: Tensor


class Linear(Protocol):
    """A matrix made ready for multiplying, with its bias."""

    num_bytes: int

    def __call__(self, rows: Tensor) -> Tensor: ...


class Operations(Protocol):
    """Rows are (tokens, features) in `activation_dtype`; a layer's heads are those of `architecture`."""

    name: str
    activation_dtype: torch.dtype

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Make a (outputs, inputs) matrix of any dtype ready; it is not kept unless it is used as it is."""

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor: ...

    def norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Root mean square normalization (Zhang and Sennrich, 2019)."""

    def add_norm(self, residual: Tensor, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Add `rows` to `residual` in place, and return that normalized."""

    def gate(self, rows: Tensor) -> Tensor:
        """SiLU of the first half of the features, times the second half."""

    def make_pages(self, num_pages: int, page_size: int, architecture: Architecture) -> Pages:
        """One layer's pages, empty."""

    def attend(self, qkv: Tensor, step: Step, pages: Pages, rope: tuple[Tensor, Tensor], layer: Layer) -> Tensor:
        """Turn queries and keys, store keys and values, and return what the queries see: (tokens, heads * size)."""


class Layer(NamedTuple):
    """What attention has to know about a layer: heads on this rank, window, and norms of heads where there are some."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    window: int | None
    norms: HeadNorms | None
    norm_epsilon: float


class PlainLinear:
    """A matrix as torch multiplies it without preparation."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight.contiguous()
        self._bias = bias
        self.num_bytes = weight.nbytes

    def __call__(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self._weight, self._bias)


class PlainOperations:
    """The reference: ordinary torch, on any device. It gathers a sequence's whole context at every layer."""

    name = "plain torch"

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self.activation_dtype = dtype

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        device, dtype = self._device, self.activation_dtype
        return PlainLinear(weight.to(device, dtype), None if bias is None else bias.to(device, dtype))

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        return functional.embedding(tokens, table)

    def norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        exact = rows.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + epsilon)
        return weight * exact.to(rows.dtype)

    def add_norm(self, residual: Tensor, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        residual += rows
        return self.norm(residual, weight, epsilon)

    def gate(self, rows: Tensor) -> Tensor:
        gate, up = rows.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def make_pages(self, num_pages: int, page_size: int, architecture: Architecture) -> Pages:
        shape = (num_pages, page_size, architecture.num_kv_heads, architecture.head_size)
        return Pages(*(torch.zeros(shape, dtype=self.activation_dtype, device=self._device) for _ in range(2)))

    def attend(self, qkv: Tensor, step: Step, pages: Pages, rope: tuple[Tensor, Tensor], layer: Layer) -> Tensor:
        queries, keys, values = self.split(qkv, step, rope, layer)
        flat_keys, flat_values = (tensor.view(-1, *tensor.shape[2:]) for tensor in pages)
        flat_keys[step.cells] = keys
        flat_values[step.cells] = values
        return self.see(queries, step, pages, layer)

    def split(self, qkv: Tensor, step: Step, rope: tuple[Tensor, Tensor], layer: Layer) -> list[Tensor]:
        """Queries, keys and values of shape (tokens, heads, size), normalized and turned."""
        heads = qkv.view(qkv.shape[0], -1, layer.head_size)
        sizes = [layer.num_heads, layer.num_kv_heads, layer.num_kv_heads]
        queries, keys, values = torch.split(heads, sizes, dim=1)
        if layer.norms is not None:
            queries = self.norm(queries, layer.norms.query, layer.norm_epsilon)
            keys = self.norm(keys, layer.norms.key, layer.norm_epsilon)
        cosines, sines = (table[step.positions][:, None] for table in rope)
        return [turned(queries, cosines, sines), turned(keys, cosines, sines), values]

    def see(self, queries: Tensor, step: Step, pages: Pages, layer: Layer) -> Tensor:
        """Attention of each sequence over its own pages, one after the other."""
        starts, lengths = step.starts.tolist(), step.lengths.tolist()
        group = layer.num_heads // layer.num_kv_heads
        seen = torch.empty_like(queries)
        for index, length in enumerate(lengths):
            own = slice(starts[index], starts[index + 1])
            # Not every device takes fewer heads of keys than of queries.
            keys, values = (
                tensor[step.block_tables[index]].flatten(0, 1)[:length].repeat_interleave(group, 1) for tensor in pages
            )
            mask = visible(step.positions[own], length, layer.window)
            seen[own] = functional.scaled_dot_product_attention(
                queries[own].transpose(0, 1)[None],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                attn_mask=mask,
            )[0].transpose(0, 1)
        return seen.flatten(1)


def turned(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate each feature of the first half with its fellow of the second half, in fp32."""
    first, second = heads.float().chunk(2, dim=-1)
    both = torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
    return both.to(heads.dtype)


def visible(positions: Tensor, length: int, window: int | None) -> Tensor:
    """Which of the first `length` keys each query may see: none after itself, none before its window."""
    distance = positions[:, None] - torch.arange(length, device=positions.device)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)
