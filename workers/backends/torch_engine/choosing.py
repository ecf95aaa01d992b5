"""Which operations compute a model here: the fastest that this machine was found to have."""

from __future__ import annotations

import torch

from .architecture import Architecture
from .native_build import load_kernels
from .native_operations import NativeOperations
from .operations import Operations, PlainOperations


def choose_operations(
    device: torch.device, dtype: torch.dtype, architecture: Architecture, page_size: int
) -> Operations:
    """Our own kernels on a CPU that has a compiler; plain torch where nothing better is at hand."""
    if device.type == "cpu" and NativeOperations.fits(architecture, page_size, dtype):
        library = load_kernels()
        if library is not None:
            return NativeOperations(library, torch.get_num_threads(), dtype)
    return PlainOperations(device, dtype)
