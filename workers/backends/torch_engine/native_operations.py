"""Operations on the CPU by our own kernels: activations in fp32, weights and KV in bfloat16 or fp32."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p

import numpy as np
import torch
from torch import Tensor

from .architecture import Architecture
from .operations import Layer, Linear, Pages
from .packed_linear import PackedLinear, has_amx
from .step import Step

LANES = 16
MAX_HEAD_SIZE = 1024
NATIVE_DTYPES = (torch.bfloat16, torch.float32)


class _Layout(Structure):
    _fields_ = [(name, c_int64) for name in ("heads", "kv_heads", "head_size", "page_size", "table_width", "window")]


class _Batch(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("positions", "starts", "lengths", "tables", "cells")),
        *((name, c_int64) for name in ("num_tokens", "num_sequences")),
    ]


class NativeLinear:
    """Tiles of 32 outputs, one after the other, each with all its inputs."""

    def __init__(self, kernels: Kernels, weight: Tensor, bias: Tensor | None) -> None:
        self._outputs, self._inputs = weight.shape
        self._kernels = kernels
        self._packed = kernels.pack(weight)
        self._bias = None if bias is None else bias.float().contiguous()
        self.num_bytes = self._packed.nbytes

    def __call__(self, rows: Tensor) -> Tensor:
        out = torch.empty((rows.shape[0], self._outputs), dtype=torch.float32)
        self._kernels.linear(rows, self._packed, self._bias, self._inputs, out)
        return out


class Kernels:
    """The library with types: every tensor is contiguous and on the CPU."""

    def __init__(self, library: ctypes.CDLL, num_threads: int) -> None:
        self._library = library
        self._num_threads = num_threads
        library.inferflux_tile.restype = c_int64
        library.inferflux_pack.argtypes = [c_int, c_void_p, c_int64, c_int64, c_void_p]
        pointers, sizes = [c_void_p] * 2, [c_int64] * 2
        library.inferflux_linear.argtypes = [
            c_int, c_void_p, c_int64, *pointers, *sizes, c_void_p, c_int,
        ]  # fmt: skip
        library.inferflux_embed.argtypes = [c_int, c_void_p, c_int64, c_void_p, c_int64, c_void_p]
        library.inferflux_norm.argtypes = [c_void_p, *pointers, *sizes, c_float, c_void_p, c_int]
        library.inferflux_gate.argtypes = [c_void_p, *sizes, c_void_p, c_int]
        library.inferflux_attend.argtypes = [
            c_int, c_void_p, POINTER(_Batch), POINTER(_Layout), *pointers, c_float, *[c_void_p] * 6, c_int,
        ]  # fmt: skip
        self._tile: int = library.inferflux_tile()

    def pack(self, weight: Tensor) -> Tensor:
        outputs, inputs = weight.shape
        weight = weight.contiguous()
        packed = torch.empty((-(-outputs // self._tile), inputs, self._tile), dtype=weight.dtype)
        self._library.inferflux_pack(_is_float(weight), weight.data_ptr(), outputs, inputs, packed.data_ptr())
        return packed

    def linear(self, rows: Tensor, packed: Tensor, bias: Tensor | None, inputs: int, out: Tensor) -> None:
        self._library.inferflux_linear(
            _is_float(packed), rows.data_ptr(), rows.shape[0], packed.data_ptr(), _pointer(bias), inputs, out.shape[1],
            out.data_ptr(), self._num_threads,
        )  # fmt: skip

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        count, size = tokens.shape[0], table.shape[1]
        out = torch.empty((count, size), dtype=torch.float32)
        self._library.inferflux_embed(
            _is_float(table), tokens.data_ptr(), count, table.data_ptr(), size, out.data_ptr()
        )
        return out

    def norm(self, residual: Tensor, added: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        out = torch.empty_like(residual)
        self._library.inferflux_norm(
            residual.data_ptr(), _pointer(added), weight.data_ptr(), *residual.shape, epsilon, out.data_ptr(),
            self._num_threads,
        )  # fmt: skip
        return out

    def gate(self, rows: Tensor) -> Tensor:
        count, size = rows.shape[0], rows.shape[1] // 2
        out = torch.empty((count, size), dtype=torch.float32)
        self._library.inferflux_gate(rows.data_ptr(), count, size, out.data_ptr(), self._num_threads)
        return out

    def attend(self, qkv: Tensor, step: Step, pages: Pages, rope: tuple[Tensor, Tensor], layer: Layer) -> Tensor:
        batch = _Batch(
            step.positions.data_ptr(), step.starts.data_ptr(), step.lengths.data_ptr(), step.block_tables.data_ptr(),
            step.cells.data_ptr(), step.tokens.shape[0], step.num_sequences,
        )  # fmt: skip
        layout = _Layout(
            layer.num_heads, layer.num_kv_heads, layer.head_size, pages.keys.shape[3], step.block_tables.shape[1],
            layer.window or 0,
        )  # fmt: skip
        query_norm, key_norm = layer.norms or (None, None)
        queries = torch.empty((qkv.shape[0], layer.num_heads * layer.head_size), dtype=torch.float32)
        out = torch.empty_like(queries)
        self._library.inferflux_attend(
            _is_float(pages.keys), qkv.data_ptr(), byref(batch), byref(layout), _pointer(query_norm),
            _pointer(key_norm), layer.norm_epsilon, rope[0].data_ptr(), rope[1].data_ptr(), queries.data_ptr(),
            pages.keys.data_ptr(),
            pages.values.data_ptr(), out.data_ptr(), self._num_threads,
        )  # fmt: skip
        return out


class NativeOperations:
    """`fits` says for which models. Matrices are multiplied by oneDNN instead where that is faster: with AMX, 1,050
    GFLOP/s on two cores against about 300; without it, 163."""

    activation_dtype = torch.float32

    def __init__(self, library: ctypes.CDLL, num_threads: int, dtype: torch.dtype) -> None:
        self._kernels = Kernels(library, num_threads)
        self._dtype = dtype
        self._uses_onednn = dtype == torch.bfloat16 and has_amx()
        self.name = f"native kernels, {'oneDNN' if self._uses_onednn else 'own'} matrix products"

    @staticmethod
    def fits(architecture: Architecture, page_size: int, dtype: torch.dtype) -> bool:
        sizes = (architecture.hidden_size, architecture.feed_forward_size, architecture.head_size, page_size)
        whole = all(size % LANES == 0 for size in sizes)
        return whole and architecture.head_size <= MAX_HEAD_SIZE and dtype in NATIVE_DTYPES

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        if self._uses_onednn:
            return PackedLinear(weight, bias)
        return NativeLinear(self._kernels, weight.to(self._dtype), bias)

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        return self._kernels.embed(tokens, table)

    def norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return self._kernels.norm(rows, None, weight, epsilon)

    def add_norm(self, residual: Tensor, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return self._kernels.norm(residual, rows, weight, epsilon)

    def gate(self, rows: Tensor) -> Tensor:
        return self._kernels.gate(rows)

    def make_pages(self, num_pages: int, page_size: int, architecture: Architecture) -> Pages:
        shape = (num_pages, architecture.num_kv_heads)
        keys = _zeros((*shape, architecture.head_size, page_size), self._dtype)
        return Pages(keys, _zeros((*shape, page_size, architecture.head_size), self._dtype))

    def attend(self, qkv: Tensor, step: Step, pages: Pages, rope: tuple[Tensor, Tensor], layer: Layer) -> Tensor:
        return self._kernels.attend(qkv, step, pages, rope, layer)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory that is taken when it is first written to: torch's own zeros take all of it at once."""
    return torch.from_numpy(np.zeros(shape, dtype=f"u{dtype.itemsize}")).view(dtype)


def _is_float(tensor: Tensor) -> int:
    return int(tensor.dtype == torch.float32)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
