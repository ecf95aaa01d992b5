"""Which operations compute a model here: the fastest that this machine was found to have."""

from __future__ import annotations

import torch

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import TorchSettings

from .architecture import Architecture
from .cuda_operations import choose_cuda_operations
from .native_build import load_kernels
from .native_operations import NativeOperations
from .operations import Operations, PlainOperations


def choose_operations(
    device: torch.device, dtype: torch.dtype, architecture: Architecture, page_size: int, settings: TorchSettings
) -> tuple[Operations, int]:
    """Paged attention on CUDA, our own kernels on a CPU that has a compiler, plain torch everywhere else; and the page
    size to use with them.

    Raises ConfigError when weights are wanted in 8 bits where nothing multiplies them.
    """
    int8 = settings.quantization == "int8"
    if device.type == "cpu" and NativeOperations.fits(architecture, page_size, dtype):
        library = load_kernels()
        if library is not None:
            return NativeOperations(library, torch.get_num_threads(), dtype, int8=int8), page_size
    if int8:
        raise ConfigError(
            "runtime.torch.quantization: int8 is computed on CPUs by kernels that a C++ compiler builds, in pages and "
            "heads that are multiples of 16, and with a dtype of bfloat16 or float32; use none here"
        )
    if device.type == "cuda":
        return choose_cuda_operations(device, dtype, architecture, page_size)
    return PlainOperations(device, dtype), page_size
