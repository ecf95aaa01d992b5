"""Which class of hardware this worker has, without loading what would use it."""

from __future__ import annotations

from pathlib import Path

from inferflux.broker.wire.fleet import Hardware
from inferflux.config.settings import Settings

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def hardware_of(settings: Settings) -> Hardware:
    """What the settings say; else `gpu` where they put something on one, or where there is an NVIDIA driver."""
    if settings.worker.hardware != "auto":
        return settings.worker.hardware
    runtime = settings.runtime
    wanted = runtime.llamacpp.n_gpu_layers or runtime.torch.device in ("cuda", "mps")
    return "gpu" if wanted or NVIDIA_DRIVER.exists() else "cpu"
