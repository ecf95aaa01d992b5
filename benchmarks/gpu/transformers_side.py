"""transformers' continuous batching on the same model, where transformers is installed."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import torch


def transformers_rate(path: Path, num_sequences: int, num_prompt: int, num_tokens: int) -> float | None:
    """Generated tokens a second over a whole batch, prompts included, once it is warm; None where it cannot be had."""
    if importlib.util.find_spec("transformers") is None:
        return None
    import transformers

    shards = sorted(path.glob("*.safetensors"))
    try:
        model: Any = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.from_pretrained(path), dtype=torch.bfloat16
        )
        _load(model, shards)
        model = model.to("cuda").eval()
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(1000, (num_sequences, num_prompt), generator=generator).tolist()
        config = transformers.GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1)
        for _ in range(2):  # the first round captures graphs, which the second one finds
            began_s = time.perf_counter()
            answers = model.generate_batch(inputs=prompts, generation_config=config, persistent_manager=True)
            took_s = time.perf_counter() - began_s
        model.destroy_cached_continuous_batching_manager()
    except Exception as error:  # another version, or no memory: the table goes on without it
        print(f"transformers' continuous batching did not run: {error}", file=sys.stderr)
        return None
    finally:
        torch.cuda.empty_cache()
    return float(sum(len(answer.generated_tokens) for answer in answers.values()) / took_s)


def _load(model: Any, shards: list[Path]) -> None:
    from safetensors.torch import load_file

    for shard in shards:
        model.load_state_dict(load_file(shard), strict=False)
    model.tie_weights()
