"""A model in one GGUF file, dequantized as it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from inferflux.broker.errors import ConfigError

from ..digest import digest_files
from .architecture import Architecture, Rope, RopeKind
from .gguf_reader import GGUFReader
from .gguf_tokenizer import gguf_tokenizer
from .tokenizer import FastTokenizer

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROPE_KINDS: dict[str, RopeKind] = {"none": "default", "linear": "linear", "yarn": "yarn"}
WHOLE = {
    gguf.GGMLQuantizationType.F32: torch.float32,
    gguf.GGMLQuantizationType.F16: torch.float16,
    gguf.GGMLQuantizationType.BF16: torch.bfloat16,
}


class GGUFFile:
    """Raises ConfigError when the file is none, or of an architecture that is not served."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            reader = GGUFReader(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.path: {path} cannot be read as GGUF: {error}") from error
        self._metadata, self._tensors = reader.metadata, reader.tensors
        self._architecture = self._read_architecture()

    @property
    def architecture(self) -> Architecture:
        return self._architecture

    def tokenizer(self) -> FastTokenizer:
        return gguf_tokenizer(self._metadata, str(self._path))

    def tensor(self, name: str) -> Tensor:
        stored = self._tensors.get(_stored_name(name))
        if stored is None:
            raise ConfigError(f"model.path: {self._path} lacks the tensor {_stored_name(name)} ({name})")
        kind = stored.kind
        if kind in WHOLE:
            tensor = torch.from_numpy(stored.data.copy()).view(WHOLE[kind])
        else:
            try:
                tensor = torch.from_numpy(gguf.quants.dequantize(stored.data, kind))
            except NotImplementedError as error:
                raise ConfigError(
                    f"model.path: {self._path}: {_stored_name(name)} is of type {kind.name}, unread"
                ) from error
        if self._architecture.family == "llama" and (".q_proj." in name or ".k_proj." in name):
            return _halves_apart(tensor, self._architecture.head_size)
        return tensor

    def digest(self) -> str:
        return digest_files([self._path])

    def _read_architecture(self) -> Architecture:
        kind = self._value("general.architecture", "none", prefix=False)
        if kind not in FAMILIES:
            raise ConfigError(
                f"model.path: {self._path} has the architecture {kind!r}, which the torch backend does not read from "
                f"GGUF; known: {', '.join(FAMILIES)}"
            )
        num_heads, num_layers = self._number("attention.head_count"), self._number("block_count")
        hidden_size = self._number("embedding_length")
        window = self._value("attention.sliding_window", 0)
        return Architecture(
            family=FAMILIES[kind],
            vocab_size=int(self._shape("token_embd.weight")[0]),
            hidden_size=hidden_size,
            feed_forward_size=self._number("feed_forward_length"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=self._value("attention.head_count_kv", num_heads),
            head_size=self._value("attention.key_length", hidden_size // num_heads),
            trained_length=self._number("context_length"),
            norm_epsilon=float(self._value("attention.layer_norm_rms_epsilon", 1e-6)),
            rope=self._rope(),
            windows=(window or None,) * num_layers,
            ties_embeddings="output.weight" not in self._tensors,
            qkv_bias="blk.0.attn_q.bias" in self._tensors,
            output_bias="blk.0.attn_output.bias" in self._tensors,
            feed_forward_bias="blk.0.ffn_up.bias" in self._tensors,
            normalizes_heads="blk.0.attn_q_norm.weight" in self._tensors,
        )

    def _rope(self) -> Rope:
        kind = self._value("rope.scaling.type", "none")
        if kind not in ROPE_KINDS:
            raise ConfigError(f"model.path: {self._path}: rope scaling {kind!r} is not served")
        divisors = self._tensors.get("rope_freqs.weight")
        return Rope(
            theta=float(self._value("rope.freq_base", 10_000.0)),
            kind=ROPE_KINDS[kind],
            factor=float(self._value("rope.scaling.factor", 1.0)),
            original_length=int(self._value("rope.scaling.original_context_length", self._number("context_length"))),
            divisors=() if divisors is None else tuple(divisors.data.view(np.float32).tolist()),
        )

    def _shape(self, name: str) -> tuple[int, ...]:
        """Rows first, as torch has it."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ConfigError(f"model.path: {self._path} lacks the tensor {name}")
        return tensor.shape

    def _number(self, key: str) -> int:
        value = self._value(key, None)
        if not isinstance(value, int):
            raise ConfigError(f"model.path: {self._path} does not say {key}")
        return value

    def _value(self, key: str, default: Any, *, prefix: bool = True) -> Any:
        """A key of this architecture's metadata."""
        if prefix:
            key = f"{self._value('general.architecture', '', prefix=False)}.{key}"
        return self._metadata.get(key, default)


def _stored_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def _halves_apart(tensor: Tensor, head_size: int) -> Tensor:
    """Rows of each head from pairs of neighbours, as llama.cpp turns them, to halves that turn together."""
    pairs = tensor.view(-1, head_size // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)
