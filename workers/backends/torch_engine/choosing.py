"""Which operations compute a model here: the fastest that this machine was found to have."""

from __future__ import annotations

import torch

from .architecture import Architecture
from .cuda_operations import choose_cuda_operations
from .native_build import load_kernels
from .native_operations import NativeOperations
from .operations import Operations, PlainOperations


def choose_operations(
    device: torch.device, dtype: torch.dtype, architecture: Architecture, page_size: int
) -> Operations:
    """Paged attention on CUDA, our own kernels on a CPU that has a compiler, plain torch everywhere else."""
    if device.type == "cuda":
        return choose_cuda_operations(device, dtype, architecture, page_size)
    if device.type == "cpu" and NativeOperations.fits(architecture, page_size, dtype):
        library = load_kernels()
        if library is not None:
            return NativeOperations(library, torch.get_num_threads(), dtype)
    return PlainOperations(device, dtype)
