"""Which operations compute a model here: the fastest that this machine was found to have."""

from __future__ import annotations

import torch

from .architecture import Architecture
from .operations import Operations, PlainOperations


def choose_operations(
    device: torch.device, dtype: torch.dtype, architecture: Architecture, page_size: int
) -> Operations:
    """Plain torch where nothing better is at hand."""
    return PlainOperations(device, dtype)
