"""Choosing a backend and importing it: nothing heavier than the one that was asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import RuntimeSettings

from ..hardware import NVIDIA_DRIVER
from ..ranks import read_ranks
from .backend import Backend
from .binding import bound_threads
from .cores import num_physical_cores

BackendKind = Literal["auto", "llamacpp", "torch", "stub"]


def open_backend(kind: BackendKind, path: str | None, settings: RuntimeSettings) -> Backend:
    """A backend that is not started yet. `auto` goes by the model file, and is the stub when there is none.

    Raises ConfigError when nothing here can serve the file.
    """
    if kind == "auto":
        kind = _kind_for(path)
    if kind == "stub":
        from .stub import StubBackend

        return StubBackend(settings)
    if path is None:
        raise ConfigError(
            f"backend: {kind} needs a model; set model.path or INFERFLUX_MODEL_PATH to a GGUF file"
            + (", or to a folder with safetensors" if kind == "torch" else "")
        )
    return _open_torch(path, settings) if kind == "torch" else _open_llamacpp(path, settings)


def _open_llamacpp(path: str, settings: RuntimeSettings) -> Backend:
    try:
        with bound_threads(settings.llamacpp.threads or num_physical_cores()):
            from .llamacpp import LlamaCppBackend
    except ImportError as error:
        raise ConfigError(
            f"backend: llamacpp cannot be imported ({error}); install it with scripts/run_dev.sh, which builds it for "
            'this processor, or with pip install "inferflux[llamacpp]"'
        ) from error
    return LlamaCppBackend(path, settings)


def _open_torch(path: str, settings: RuntimeSettings) -> Backend:
    if settings.torch.device in ("auto", "cpu") and not NVIDIA_DRIVER.exists():
        from .torch_engine.native_build import build_ahead

        build_ahead()
    try:
        from .torch_engine.torch_backend import TorchBackend
    except ImportError as error:
        raise ConfigError(
            f"backend: torch cannot be imported ({error}); install it with scripts/setup.sh torch, or with pip install "
            '"inferflux[torch]"'
        ) from error
    ranks = read_ranks(os.environ)
    if ranks is None or ranks.backend == "stub":
        return TorchBackend(path, settings)
    from .torch_engine.leader import LeadingBackend, leader_for

    return LeadingBackend(path, settings, leader_for(ranks))


def _kind_for(path: str | None) -> BackendKind:
    if path is None:
        return "stub"
    if path.lower().endswith(".gguf"):
        return "llamacpp"
    if Path(path).is_dir():
        return "torch"
    raise ConfigError(
        f"model.path: no backend serves {path!r}; a GGUF file ends in .gguf, a model with safetensors is a folder"
    )
