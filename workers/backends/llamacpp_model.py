"""A GGUF file that llama.cpp has loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from inferflux.broker.errors import ConfigError

from .digest import digest_files
from .llamacpp_log import native_log

MAGIC = b"GGUF"


class LlamaCppModel:
    """Weights and what the file says about them. `native` is the library's pointer, valid until `close`.

    `on_progress` is told the share that is loaded. Raises ConfigError when the file cannot be served.
    """

    def __init__(self, path: Path, num_gpu_layers: int, on_progress: Callable[[float], None]) -> None:
        _check_file(path)
        params = lib.llama_model_default_params()
        params.n_gpu_layers = num_gpu_layers

        def progressed(share: float, _: object) -> bool:
            on_progress(share)
            return True  # False would end the loading

        params.progress_callback = lib.llama_progress_callback(progressed)
        native_log.take_problems()
        self.native: Any = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.native:
            raise ConfigError(f"model.path: llama.cpp cannot load {path}: {native_log.take_problems()}")
        if not lib.llama_model_has_decoder(self.native) or lib.llama_model_has_encoder(self.native):
            self.close()
            raise ConfigError(f"model.path: {path} is no decoder-only model; only those are served in this version")
        if lib.llama_model_is_recurrent(self.native) or lib.llama_model_is_hybrid(self.native):
            self.close()
            raise ConfigError(
                f"model.path: {path} keeps a recurrent state, which cannot be cut back to a prefix; only models with "
                "attention alone are served in this version"
            )
        self._path = path

    @property
    def trained_length(self) -> int:
        return int(lib.llama_model_n_ctx_train(self.native))

    @property
    def embedding_size(self) -> int:
        return int(lib.llama_model_n_embd_out(self.native))

    @property
    def num_bytes(self) -> int:
        return int(lib.llama_model_size(self.native))

    def kv_values_per_token(self) -> int:
        """Keys and values of one token in all layers; heads are taken to be alike in every layer."""
        num_heads = lib.llama_model_n_head(self.native)
        default = lib.llama_model_n_embd(self.native) // max(num_heads, 1)
        key = self._metadata_number("attention.key_length", default)
        value = self._metadata_number("attention.value_length", default)
        return int(lib.llama_model_n_layer(self.native) * lib.llama_model_n_head_kv(self.native) * (key + value))

    def digest(self) -> str:
        return digest_files([self._path])

    def close(self) -> None:
        if self.native:
            lib.llama_model_free(self.native)
            self.native = None

    def _metadata_number(self, key: str, default: int) -> int:
        text = self._metadata(f"{self._metadata('general.architecture')}.{key}")
        return int(text) if text.isdecimal() else default

    def _metadata(self, key: str) -> str:
        """Empty when the file does not say."""
        buffer = ctypes.create_string_buffer(256)
        length = lib.llama_model_meta_val_str(self.native, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if length >= 0 else ""


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise ConfigError(
            f"model.path: {path} cannot be read ({error.strerror}); set model.path or INFERFLUX_MODEL_PATH to a GGUF "
            "file, or fetch the default model with scripts/run_dev.sh"
        ) from error
    if magic != MAGIC:
        raise ConfigError(f"model.path: {path} is no GGUF file: it begins with {magic!r} instead of {MAGIC!r}")
