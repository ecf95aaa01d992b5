"""Operations on the CPU by our own kernels: activations in fp32, weights and KV in bfloat16 or fp32."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from .architecture import Architecture
from .native_kernels import INT8, KINDS, Kernels, Matrix, address
from .operations import Layer, Linear, Pages
from .packed_linear import PackedLinear, has_amx
from .step import Step

LANES = 16
MAX_HEAD_SIZE = 1024


class NativeLinear:
    """Tiles of 32 outputs, one after the other, each with all its inputs."""

    def __init__(self, kernels: Kernels, weight: Tensor, bias: Tensor | None, kind: int) -> None:
        self._kernels = kernels
        self._packed = kernels.pack(weight, kind)
        self._bias = None if bias is None else bias.float().contiguous()
        outputs, inputs = weight.shape
        self.matrix = Matrix(kind, inputs, outputs, self._packed.data_ptr(), address(self._bias))
        self.num_bytes = self._packed.nbytes

    def __call__(self, rows: Tensor) -> Tensor:
        return self._kernels.linear(self.matrix, rows)


class NativeOperations:
    """`fits` says for which models. Matrices are multiplied by oneDNN instead where that is faster: with AMX, 1,050
    GFLOP/s on two cores against about 300; without it, 163."""

    activation_dtype = torch.float32

    def __init__(self, library: ctypes.CDLL, num_threads: int, dtype: torch.dtype, *, int8: bool = False) -> None:
        self.kernels = Kernels(library, num_threads)
        self.kv_kind = KINDS[dtype]
        self._dtype = dtype
        self._kind = INT8 if int8 else self.kv_kind
        self.uses_onednn = dtype == torch.bfloat16 and not int8 and has_amx()
        products = "oneDNN" if self.uses_onednn else "own int8" if int8 else "own"
        self.name = f"native kernels, {products} matrix products"

    @staticmethod
    def fits(architecture: Architecture, page_size: int, dtype: torch.dtype) -> bool:
        sizes = (architecture.hidden_size, architecture.feed_forward_size, architecture.head_size, page_size)
        whole = all(size % LANES == 0 for size in sizes)
        return whole and architecture.head_size <= MAX_HEAD_SIZE and dtype in KINDS

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        if self.uses_onednn:
            return PackedLinear(weight.to(self._dtype), bias)
        return NativeLinear(self.kernels, weight, bias, self._kind)

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        return self.kernels.embed(tokens, table)

    def norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return self.kernels.norm(rows, None, weight, epsilon)

    def add_norm(self, residual: Tensor, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return self.kernels.norm(residual, rows, weight, epsilon)

    def gate(self, rows: Tensor) -> Tensor:
        return self.kernels.gate(rows)

    def make_pages(self, num_pages: int, page_size: int, architecture: Architecture) -> Pages:
        shape = (num_pages, architecture.num_kv_heads)
        keys = _zeros((*shape, architecture.head_size, page_size), self._dtype)
        return Pages(keys, _zeros((*shape, page_size, architecture.head_size), self._dtype))

    def attend(self, qkv: Tensor, step: Step, pages: Pages, rope: tuple[Tensor, Tensor], layer: Layer) -> Tensor:
        return self.kernels.attend(qkv, step, pages, rope, layer)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory that is taken when it is first written to: torch's own zeros take all of it at once."""
    return torch.from_numpy(np.zeros(shape, dtype=f"u{dtype.itemsize}")).view(dtype)
