"""Matrix products by oneDNN with weights packed once: `functional.linear` would pack them again at every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PACKING_ROWS = 32
"""Packed for so many rows at a time; other numbers work too."""

_mkldnn: Any = torch.ops.mkldnn


def has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16. It is asked, not timed: a busy machine must not change
    results from one start to the next."""
    supported: Any = torch.cpu._is_amx_tile_supported
    return bool(supported())


class PackedLinear:
    """bfloat16 inside, fp32 outside."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed = _mkldnn._reorder_linear_weight(weight.contiguous(), PACKING_ROWS)
        self._bias = None if bias is None else bias.to(weight.dtype)
        self._dtype = weight.dtype
        self.num_bytes = weight.nbytes

    def __call__(self, rows: Tensor) -> Tensor:
        out: Tensor = _mkldnn._linear_pointwise(rows.to(self._dtype), self._packed, self._bias, "none", [], "")
        return out.float()
