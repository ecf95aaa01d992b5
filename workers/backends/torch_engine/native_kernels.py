"""The kernels for CPUs with types: ctypes structures as `kernels/*.h` have them, and tensors instead of addresses."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from .operations import Layer, Pages
from .step import Step

BFLOAT16, FLOAT, INT8 = 0, 1, 2
"""How numbers are stored; 8 bits are for weights alone."""
KINDS = {torch.bfloat16: BFLOAT16, torch.float32: FLOAT}


class Layout(Structure):
    """Heads and pages of a layer."""

    _fields_ = [(name, c_int64) for name in ("heads", "kv_heads", "head_size", "page_size", "table_width", "window")]


class Batch(Structure):
    """A step's tensors."""

    _fields_ = [
        *((name, c_void_p) for name in ("positions", "starts", "lengths", "tables", "cells")),
        *((name, c_int64) for name in ("num_tokens", "num_sequences")),
    ]


class Matrix(Structure):
    """Packed weights and their bias."""

    _fields_ = [
        *((name, c_int64) for name in ("kind", "inputs", "outputs")),
        *((name, c_void_p) for name in ("packed", "bias")),
    ]


class Block(Structure):
    """One layer with its pages."""

    _fields_ = [
        *((name, Matrix) for name in ("qkv", "output", "gate_up", "down")),
        *((name, c_void_p) for name in ("attention_norm", "query_norm", "key_norm", "feed_forward_norm")),
        *((name, c_void_p) for name in ("keys", "values")),
        ("window", c_int64),
    ]


class Blocks(Structure):
    """All layers, and what they share."""

    _fields_ = [
        ("blocks", POINTER(Block)),
        *((name, c_int64) for name in ("num_blocks", "kind")),
        *((name, c_void_p) for name in ("norm", "cosines", "sines")),
        ("epsilon", c_float),
    ]


class Kernels:
    """Every tensor is contiguous and on the CPU; rows are fp32."""

    def __init__(self, library: ctypes.CDLL, num_threads: int) -> None:
        self._library = library
        self._num_threads = num_threads
        pointers, sizes = [c_void_p] * 2, [c_int64] * 2
        library.inferflux_packed_bytes.argtypes = [c_int64, *sizes]
        library.inferflux_packed_bytes.restype = c_int64
        library.inferflux_pack.argtypes = [c_int64, c_void_p, *sizes, c_void_p]
        library.inferflux_linear.argtypes = [POINTER(Matrix), c_void_p, c_int64, c_void_p, c_int]
        library.inferflux_embed.argtypes = [c_int64, c_void_p, c_int64, c_void_p, c_int64, c_void_p]
        library.inferflux_norm.argtypes = [c_void_p, *pointers, *sizes, c_float, c_void_p, c_int]
        library.inferflux_gate.argtypes = [c_void_p, *sizes, c_void_p, c_int]
        library.inferflux_attend.argtypes = [
            c_int64, c_void_p, POINTER(Batch), POINTER(Layout), *pointers, c_float, *[c_void_p] * 6, c_int,
        ]  # fmt: skip
        library.inferflux_decode.argtypes = [POINTER(Blocks), POINTER(Batch), POINTER(Layout), *pointers, c_int]

    def pack(self, weight: Tensor, kind: int) -> Tensor:
        """Of a matrix (outputs, inputs): bytes in the kernels' own order."""
        outputs, inputs = weight.shape
        weight = weight.to(torch.bfloat16 if kind == BFLOAT16 else torch.float32).contiguous()
        packed = torch.empty(self._library.inferflux_packed_bytes(kind, outputs, inputs), dtype=torch.uint8)
        self._library.inferflux_pack(kind, weight.data_ptr(), outputs, inputs, packed.data_ptr())
        return packed

    def linear(self, matrix: Matrix, rows: Tensor) -> Tensor:
        out = torch.empty((rows.shape[0], matrix.outputs), dtype=torch.float32)
        self._library.inferflux_linear(byref(matrix), rows.data_ptr(), rows.shape[0], out.data_ptr(), self._num_threads)
        return out

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        count, size = tokens.shape[0], table.shape[1]
        out = torch.empty((count, size), dtype=torch.float32)
        self._library.inferflux_embed(
            KINDS[table.dtype], tokens.data_ptr(), count, table.data_ptr(), size, out.data_ptr()
        )
        return out

    def norm(self, residual: Tensor, added: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        out = torch.empty_like(residual)
        self._library.inferflux_norm(
            residual.data_ptr(), address(added), weight.data_ptr(), *residual.shape, epsilon, out.data_ptr(),
            self._num_threads,
        )  # fmt: skip
        return out

    def gate(self, rows: Tensor) -> Tensor:
        count, size = rows.shape[0], rows.shape[1] // 2
        out = torch.empty((count, size), dtype=torch.float32)
        self._library.inferflux_gate(rows.data_ptr(), count, size, out.data_ptr(), self._num_threads)
        return out

    def attend(self, qkv: Tensor, step: Step, pages: Pages, rope: tuple[Tensor, Tensor], layer: Layer) -> Tensor:
        query_norm, key_norm = layer.norms or (None, None)
        queries = torch.empty((qkv.shape[0], layer.num_heads * layer.head_size), dtype=torch.float32)
        out = torch.empty_like(queries)
        self._library.inferflux_attend(
            KINDS[pages.keys.dtype], qkv.data_ptr(), byref(batch_of(step)), byref(layout_of(layer, step, pages)),
            address(query_norm), address(key_norm), layer.norm_epsilon, rope[0].data_ptr(), rope[1].data_ptr(),
            queries.data_ptr(), pages.keys.data_ptr(), pages.values.data_ptr(), out.data_ptr(), self._num_threads,
        )  # fmt: skip
        return out

    def decode(self, blocks: Blocks, step: Step, layout: Layout, residual: Tensor) -> Tensor:
        """Normalized last states of embedded tokens; `residual` is used up."""
        out = torch.empty_like(residual)
        self._library.inferflux_decode(
            byref(blocks), byref(batch_of(step)), byref(layout), residual.data_ptr(), out.data_ptr(),
            self._num_threads,
        )  # fmt: skip
        return out


def batch_of(step: Step) -> Batch:
    """Addresses of a step's tensors, which must outlive it."""
    return Batch(
        step.positions.data_ptr(), step.starts.data_ptr(), step.lengths.data_ptr(), step.block_tables.data_ptr(),
        step.cells.data_ptr(), step.tokens.shape[0], step.num_sequences,
    )  # fmt: skip


def layout_of(layer: Layer, step: Step, pages: Pages) -> Layout:
    """How a layer's heads and this step's pages lie."""
    return Layout(
        layer.num_heads, layer.num_kv_heads, layer.head_size, pages.keys.shape[3], step.block_tables.shape[1],
        layer.window or 0,
    )  # fmt: skip


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
