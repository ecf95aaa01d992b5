"""Small models of every family with random weights, and a bare decoder to compare with transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers

from inferflux.workers.backends.backend import Chunk, SamplingParams
from inferflux.workers.backends.torch_engine.checkpoint import Checkpoint
from inferflux.workers.backends.torch_engine.decoder import Decoder
from inferflux.workers.backends.torch_engine.exchange import NoExchange
from inferflux.workers.backends.torch_engine.native_decoder import make_decoder
from inferflux.workers.backends.torch_engine.operations import Operations, PlainOperations
from inferflux.workers.backends.torch_engine.shard import Shard
from inferflux.workers.backends.torch_engine.step import make_step
from inferflux.workers.backends.torch_engine.weights import WeightReader

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 16,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "llama, biased and tied": lambda: transformers.LlamaConfig(
        **SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama, linear rope": lambda: transformers.LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    ),
    "llama, llama3 rope": lambda: transformers.LlamaConfig(
        **SMALL, rope_parameters={**LLAMA3, "original_max_position_embeddings": 64, "rope_theta": 500_000.0}
    ),
    "llama, dynamic rope": lambda: transformers.LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    ),
    "llama, groups of 7": lambda: transformers.LlamaConfig(
        **{**SMALL, "hidden_size": 112, "num_attention_heads": 14, "num_key_value_heads": 2}
    ),
    "llama, no groups": lambda: transformers.LlamaConfig(**{**SMALL, "num_key_value_heads": 4}),
    "llama, yarn rope with weights": lambda: transformers.LlamaConfig(
        **SMALL,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "rope_theta": 10_000.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.8,
        },
    ),
    "mistral, head size 96": lambda: transformers.MistralConfig(
        **{**SMALL, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 96}, sliding_window=None
    ),
    "mistral, window": lambda: transformers.MistralConfig(**SMALL, sliding_window=9),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen2, window above": lambda: transformers.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "qwen3": lambda: transformers.Qwen3Config(**{**SMALL, "head_dim": 32}),
    "qwen3, yarn rope": lambda: transformers.Qwen3Config(
        **SMALL,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 1_000_000.0,
        },
    ),
}


def random_model(variant: str, folder: Path) -> Any:
    """Save a random model with a tokenizer of bytes to `folder`; returns transformers' own model."""
    torch.manual_seed(len(variant))
    model: Any = transformers.AutoModelForCausalLM.from_config(VARIANTS[variant](), dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.2)
        else:
            torch.nn.init.normal_(parameter, 0.0, 0.12)
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate(["<s>", "</s>", *letters])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": {"content": "<s>"}}')
    return model.eval()


def export_model(checkpoint: Checkpoint, folder: Path) -> Any:
    """Save a Llama's dequantized weights to `folder`, as fp32; returns transformers' own model of them."""
    architecture = checkpoint.architecture
    config = transformers.LlamaConfig(
        vocab_size=architecture.vocab_size,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.feed_forward_size,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_heads,
        num_key_value_heads=architecture.num_kv_heads,
        max_position_embeddings=architecture.trained_length,
        rms_norm_eps=architecture.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope.theta},
        tie_word_embeddings=architecture.ties_embeddings,
    )
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    names = [name for name in model.state_dict() if name != "lm_head.weight"]
    safetensors.torch.save_file(
        {name: checkpoint.tensor(name).contiguous() for name in names}, folder / "model.safetensors", {"format": "pt"}
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


class Forward:
    """A decoder and enough pages for one sequence. Blocks are computed in one call where they can, unless `apart`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        operations: Operations | None = None,
        length: int = 256,
        *,
        apart: bool = False,
    ) -> None:
        operations = operations or PlainOperations(CPU, torch.float32)
        dtype = operations.make_pages(1, 16, checkpoint.architecture).keys.dtype
        weights = WeightReader(checkpoint, operations, Shard(), CPU, dtype).read(lambda _: None)
        make = Decoder if apart else make_decoder
        self.decoder = make(checkpoint.architecture, weights, operations, NoExchange(), length, CPU)
        self.pages = self.decoder.make_pages(length // 16, 16)
        self.table = list(reversed(range(length // 16)))

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int], chunk: int = 0) -> torch.Tensor:
        """Of every position, (tokens, vocabulary), computed in chunks of so many tokens."""
        rows = []
        size = chunk or len(tokens)
        for start in range(0, len(tokens), size):
            part = Chunk(slot=0, start=start, tokens=tokens[start : start + size], block_table=self.table)
            hidden = self.decoder.hidden(make_step([part], 16, CPU), self.pages)
            rows.append(self.decoder.logits(hidden))
        return torch.cat(rows)

    @torch.inference_mode()
    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The likeliest continuation, one token at a time."""
        tokens, start = list(prompt), 0
        for _ in range(count):
            part = Chunk(
                slot=0,
                start=start,
                tokens=tokens[start:],
                block_table=self.table,
                sampling=SamplingParams(temperature=0.0),
            )
            step = make_step([part], 16, CPU)
            hidden = self.decoder.hidden(step, self.pages)
            start = len(tokens)
            tokens.append(int(self.decoder.logits(hidden[step.outputs]).argmax()))
        return tokens[len(prompt) :]
