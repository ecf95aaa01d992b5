"""Every family against transformers, on small models with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from harness.torch_model import VARIANTS, Forward, random_model

from inferflux.broker.errors import ConfigError
from inferflux.workers.backends.torch_engine.checkpoint import open_checkpoint

TOKENS = [(7 * position * position + 11) % 320 for position in range(100)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    model = random_model(variant, tmp_path)
    with torch.inference_mode():
        expected = model(torch.tensor([TOKENS])).logits[0]
    forward = Forward(open_checkpoint(tmp_path))
    for chunk in (0, 1, 7):
        torch.testing.assert_close(forward.logits(TOKENS, chunk), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_may_be_stored_in_fewer_bits_and_several_files(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model("qwen3", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.to(dtype).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        expected = again(torch.tensor([TOKENS])).logits[0]
    logits = Forward(open_checkpoint(tmp_path)).logits(TOKENS)
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)


def change(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM' is not served; known: LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope scaling 'longrope'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "'llama3' lacks 'factor'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": None}}, "a value is of another kind"),
        ({"rope_parameters": [1]}, "a value is of another kind"),
        ({"rms_norm_eps": None}, "rms_norm_eps must be a number, not None"),
        ({"num_hidden_layers": "three"}, "num_hidden_layers must be a whole number above 0, not 'three'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number above 0, not 0"),
        ({"head_dim": "wide"}, "head_dim must be a whole number above 0, not 'wide'"),
        ({"num_key_value_heads": 3}, "4 heads of 16 features cannot share 3 heads of keys"),
        ({"num_hidden_layers": 4}, "lacks the tensor model.layers.3.input_layernorm.weight"),
        ({"intermediate_size": 128}, r"gate_proj.weight has the shape \(96, 64\) instead of \(128, 64\)"),
    ],
)
def test_what_cannot_be_served_is_named(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    random_model("llama", tmp_path)
    change(tmp_path, **fields)
    with pytest.raises(ConfigError, match=message):
        Forward(open_checkpoint(tmp_path))


def test_a_download_that_stopped_half_way_is_told(tmp_path: Path) -> None:
    random_model("llama", tmp_path)
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"lacks model-00002-of-00002\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [None, "no JSON", "[]"])
def test_a_folder_without_a_readable_config_is_an_error(tmp_path: Path, content: str | None) -> None:
    random_model("llama", tmp_path)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_files_that_are_cut_off_or_missing_are_named(tmp_path: Path) -> None:
    random_model("llama", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read: .*; the folder needs the tokenizer"):
        open_checkpoint(tmp_path).tokenizer()
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
        open_checkpoint(tmp_path)


def test_an_empty_folder_and_no_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        open_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        open_checkpoint(tmp_path / "nothing")
