"""GGUF files: small ones written here, and what is said of those that cannot be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from inferflux.broker.errors import ConfigError
from inferflux.workers.backends.torch_engine.checkpoint import open_checkpoint

WORDS = ["<|end|>", "h", "i", "hi", "\u0120"]


def write(path: Path, architecture: str = "qwen2", *, pre: str = "qwen2", leave_out: str = "") -> dict[str, Any]:
    """A model of one layer; returns its tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 1, 1, 1, 1])
    writer.add_token_merges(["h i"])
    writer.add_eos_token_id(0)
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (5, 32), "output_norm": (32,), "blk.0.attn_q": (32, 32), "blk.0.ffn_down": (32, 64)}
    tensors = {f"{name}.weight": draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, values in tensors.items():
        if name == leave_out:
            continue
        if name == "blk.0.ffn_down.weight":
            quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_metadata_and_tensors_are_read(tmp_path: Path) -> None:
    tensors = write(tmp_path / "model.gguf")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    architecture = checkpoint.architecture
    assert (architecture.num_heads, architecture.num_kv_heads, architecture.head_size) == (2, 1, 16)
    assert architecture.ties_embeddings
    plain = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")
    torch.testing.assert_close(plain, torch.from_numpy(tensors["blk.0.attn_q.weight"]))
    quantized = checkpoint.tensor("model.layers.0.mlp.down_proj.weight")
    torch.testing.assert_close(quantized, torch.from_numpy(tensors["blk.0.ffn_down.weight"]), atol=0.02, rtol=0.0)
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.encode("hi", special=False, bos=False) == [3]
    assert tokenizer.encode("<|end|>", special=True, bos=False) == [0]
    assert tokenizer.eos_ids == {0}


def test_what_is_missing_or_unknown_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path)
    with pytest.raises(ConfigError, match=r"lacks the tensor blk\.0\.attn_k\.weight"):
        open_checkpoint(path).tensor("model.layers.0.self_attn.k_proj.weight")
    write(path, "mamba")
    with pytest.raises(ConfigError, match="the architecture 'mamba', which the torch backend does not read"):
        open_checkpoint(path)
    write(path, pre="deepseek-llm")
    with pytest.raises(ConfigError, match="tokenizer of kind 'gpt2', 'deepseek-llm'"):
        open_checkpoint(path).tokenizer()
    write(path, leave_out="token_embd.weight")
    with pytest.raises(ConfigError, match=r"lacks the tensor token_embd\.weight"):
        open_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_an_error(share: float, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ConfigError, match=r"model\.gguf cannot be read as GGUF"):
        open_checkpoint(path)


def test_another_file_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ConfigError, match="it begins with"):
        open_checkpoint(path)
