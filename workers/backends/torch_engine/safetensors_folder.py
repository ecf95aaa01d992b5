"""A model as Hugging Face stores it: config.json, *.safetensors and tokenizer.json in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from inferflux.broker.errors import ConfigError

from ..digest import digest_files
from .architecture import Architecture
from .families import read_config
from .tokenizer import FastTokenizer

INDEX = "model.safetensors.index.json"


class SafetensorsFolder:
    """Files are mapped into memory, and a tensor is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = sorted(path.glob("*.safetensors"))
        if not self._files:
            raise ConfigError(f"model.path: {path} holds no *.safetensors file")
        self._architecture = read_config(_read_json(path / "config.json"), str(path / "config.json"))
        self._file_of: dict[str, Path] = {}
        self._opened: dict[Path, Any] = {}
        try:
            for file in self._files:
                self._opened[file] = safe_open(file, framework="pt")
                self._file_of |= dict.fromkeys(self._opened[file].keys(), file)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"model.path: {file} cannot be read: {error}") from error
        self._check_index()

    @property
    def architecture(self) -> Architecture:
        return self._architecture

    def tokenizer(self) -> FastTokenizer:
        return FastTokenizer.from_folder(self._path)

    def tensor(self, name: str) -> Tensor:
        file = self._file_of.get(name)
        if file is None:
            raise ConfigError(f"model.path: {self._path} lacks the tensor {name}")
        tensor: Tensor = self._opened[file].get_tensor(name)
        return tensor

    def digest(self) -> str:
        return digest_files(self._files)

    def _check_index(self) -> None:
        """A download that stopped half-way is told as that, and not as a missing tensor."""
        path = self._path / INDEX
        if not path.exists():
            return
        wanted = set(_read_json(path).get("weight_map", {}).values())
        missing = sorted(wanted - {file.name for file in self._files})
        if missing:
            raise ConfigError(f"model.path: {self._path} lacks {', '.join(missing)}, which {INDEX} names")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"model.path: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"model.path: {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"model.path: {path} must hold a JSON object")
    return content
