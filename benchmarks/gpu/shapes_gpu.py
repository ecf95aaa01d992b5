"""Models of well-known shapes with random weights, as a safetensors folder with a tokenizer of bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

COMMON = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
    "eos_token_id": 1,
}


def _shape(hidden: int, inner: int, layers: int, heads: int, *, tied: bool, **other: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**COMMON, **sizes, "num_attention_heads": heads, "tie_word_embeddings": tied, **other}


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _shape(256, 512, 4, 4, tied=True, num_key_value_heads=2, head_dim=64, vocab_size=1024),
    "0.6B": _shape(1024, 3072, 28, 16, tied=True),
    "1.7B": _shape(2048, 6144, 28, 16, tied=True),
    "8B": _shape(4096, 12288, 36, 32, tied=False),
}


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """A folder that any loader of Qwen3 reads. Weights are written layer by layer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({text: number for number, text in enumerate(["<s>", "</s>", *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    embeddings = {
        "model.embed_tokens.weight": _random(config["vocab_size"], hidden),
        "model.norm.weight": _ones(hidden),
    }
    if not config["tie_word_embeddings"]:
        embeddings["lm_head.weight"] = _random(config["vocab_size"], hidden)
    save_file(embeddings, folder / "model-embeddings.safetensors", {"format": "pt"})
    for layer in range(config["num_hidden_layers"]):
        tensors = {
            "input_layernorm": _ones(hidden),
            "post_attention_layernorm": _ones(hidden),
            "self_attn.q_proj": _random(heads, hidden),
            "self_attn.k_proj": _random(kv_heads, hidden),
            "self_attn.v_proj": _random(kv_heads, hidden),
            "self_attn.o_proj": _random(hidden, heads),
            "self_attn.q_norm": _ones(size),
            "self_attn.k_norm": _ones(size),
            "mlp.gate_proj": _random(inner, hidden),
            "mlp.up_proj": _random(inner, hidden),
            "mlp.down_proj": _random(hidden, inner),
        }
        named = {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in tensors.items()}
        save_file(named, folder / f"model-{layer:03}.safetensors", {"format": "pt"})
    return folder


def _random(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns).mul_(1 / math.sqrt(columns)).to(torch.bfloat16)


def _ones(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.bfloat16)
