"""Where a model is computed, and in which numbers."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import TorchSettings

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PROBES: dict[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "cpu": lambda: True,
}


def choose_device(settings: TorchSettings) -> torch.device:
    """CUDA where there is a GPU, else MPS, else the CPU. Raises ConfigError when the wanted one is not there."""
    if settings.device == "auto":
        return torch.device(next(kind for kind, there in PROBES.items() if there()))
    if not PROBES[settings.device]():
        raise ConfigError(
            f"runtime.torch.device: torch {torch.__version__} finds no {settings.device} device here; use auto or "
            "cpu, or install a build of torch for it"
        )
    return torch.device(settings.device)


def choose_dtype(settings: TorchSettings, device: torch.device) -> torch.dtype:
    """What weights and KV are stored in: bfloat16, except on MPS, whose reductions in it are not to be trusted."""
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    return torch.float32 if device.type == "mps" else torch.bfloat16


def available_bytes(device: torch.device, rehearse: Callable[[], None]) -> int:
    """Free memory where KV will lie. On a GPU, `rehearse` computes the largest step first: its peak is taken off."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        rehearse()
        peak = torch.cuda.max_memory_allocated(device) - before
        torch.cuda.empty_cache()
        return max(0, int(torch.cuda.mem_get_info(device)[0]) - peak)
    return int(psutil.virtual_memory().available)
