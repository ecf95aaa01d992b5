"""Where a model's weights come from: one interface over a safetensors folder and a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from inferflux.broker.errors import ConfigError

from ..backend import Tokenizer
from .architecture import Architecture


class Checkpoint(Protocol):
    """Tensors go by the names that Hugging Face gives them, such as `model.layers.0.mlp.up_proj.weight`."""

    @property
    def architecture(self) -> Architecture: ...

    def tokenizer(self) -> Tokenizer: ...

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, in the dtype it is stored in, or fp32 when it was quantized. Raises ConfigError naming a
        tensor that is missing."""

    def digest(self) -> str:
        """Names the weights: another training gives another digest."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Raises ConfigError when there is nothing at `path` that can be read."""
    if path.is_dir():
        from .safetensors_folder import SafetensorsFolder

        return SafetensorsFolder(path)
    if not path.is_file():
        raise ConfigError(f"model.path: {path} does not exist; name a folder with safetensors files, or a GGUF file")
    from .gguf_file import GGUFFile

    return GGUFFile(path)
