"""The torch backend on a GPU with random weights: does it compute what plain torch computes, and how fast.

    benchmarks/gpu/run.sh [--quick] [--shapes 0.6B,1.7B,8B]

Decode at each batch size against what reading weights and KV takes at the device's bandwidth, prefill against what its
multipliers give; both limits are measured first, with a copy and a large product. transformers' continuous batching is
run on the same shapes where transformers is installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from shapes_gpu import SHAPES, write_model
from transformers_side import transformers_rate

from inferflux.config.settings import PagedKVSettings, RuntimeSettings, SchedulerSettings, TorchSettings
from inferflux.workers.backends.backend import Capacity, Chunk, SamplingParams
from inferflux.workers.backends.torch_engine.torch_backend import TorchBackend

BATCHES, QUICK_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256), (1, 32, 256)
CONTEXT, PROMPT, NUM_STEPS, STEP_TOKENS = 1024, 512, 32, 2048
GREEDY = SamplingParams(temperature=0.0)


class Machine:
    """What the device can do at best: bytes a second of a copy, and operations a second of a bfloat16 product."""

    def __init__(self) -> None:
        block = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(block)
        self.bytes_per_s = 2 * block.nbytes / seconds(lambda: target.copy_(block))
        square = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
        self.operations_per_s = 2 * 8192**3 / seconds(lambda: square @ square)


def seconds(work: Any, repeats: int = 10) -> float:
    """Of one call, on the device's clock."""
    work()
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / repeats


class Sequences:
    """A batch of sequences of random tokens in pages of their own."""

    def __init__(self, backend: TorchBackend, capacity: Capacity, count: int) -> None:
        self._backend = backend
        self._width = -(-CONTEXT // capacity.page_size)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(capacity.vocab_size, (count, PROMPT), generator=generator)
        self.tokens: list[list[int]] = drawn.tolist()
        self._computed = [0] * count

    def chunk(self, slot: int, size: int) -> Chunk:
        tokens, start = self.tokens[slot], self._computed[slot]
        end = min(start + size, len(tokens))
        self._computed[slot] = end
        return Chunk(
            slot=slot,
            start=start,
            tokens=tokens[start:end],
            block_table=range(slot * self._width, (slot + 1) * self._width),
            sampling=GREEDY if end == len(tokens) else None,
            history=tokens,
            num_prompt_tokens=PROMPT,
        )

    def prefill(self) -> None:
        """Whole prompts, as many as go into a step."""
        at_once = max(1, STEP_TOKENS // PROMPT)
        for first in range(0, len(self.tokens), at_once):
            self._run(range(first, min(first + at_once, len(self.tokens))), PROMPT)

    def step(self) -> None:
        self._run(range(len(self.tokens)), 1)

    def _run(self, slots: range, size: int) -> None:
        for slot, sample in zip(slots, self._backend.run([self.chunk(slot, size) for slot in slots]), strict=True):
            assert sample.token is not None
            self.tokens[slot].append(sample.token)


def agreement(path: Path, settings: RuntimeSettings) -> float:
    """The largest difference of logits from plain torch's in fp32 on the CPU, over their spread."""
    tokens = [(7 * position + 3) % 1000 for position in range(96)]

    def logits(backend: TorchBackend) -> torch.Tensor:
        rows = []

        def keep(values: torch.Tensor, chunks: Any) -> Any:
            rows.append(values.float().cpu())
            return original(values, chunks)

        original = backend._sampler.draw
        setattr(backend._sampler, "draw", keep)  # noqa: B010 - a method is replaced on purpose
        whole = Chunk(slot=0, start=0, tokens=tokens, block_table=range(8), sampling=GREEDY, history=tokens)
        backend.run([whole])
        backend.run([Chunk(slot=0, start=96, tokens=[5], block_table=range(8), sampling=GREEDY, history=[*tokens, 5])])
        return torch.cat(rows)

    fast, reference = TorchBackend(str(path), settings), TorchBackend(str(path), _on_cpu(settings))
    fast.start()
    got = logits(fast)
    fast.close()
    reference.start()
    expected = logits(reference)
    reference.close()
    return float((got - expected).abs().max() / expected.std())


def _on_cpu(settings: RuntimeSettings) -> RuntimeSettings:
    from msgspec.structs import replace

    return replace(settings, torch=TorchSettings(device="cpu", dtype="float32"))


def measure(path: Path, shape: str, batches: tuple[int, ...], machine: Machine) -> list[dict[str, Any]]:
    """Rows of the table for one shape."""
    largest = max(batches)
    settings = RuntimeSettings(
        scheduler=SchedulerSettings(max_batch_size=largest, max_batch_tokens=STEP_TOKENS),
        paged_kv=PagedKVSettings(page_size=16),
        torch=TorchSettings(device="cuda", context_length=CONTEXT),
    )
    backend = TorchBackend(str(path), settings)
    capacity = backend.start()
    # Of the embeddings a step reads a row for each token, and of the last product a prompt needs one row.
    table_bytes = capacity.vocab_size * capacity.embedding_size * 2
    read_bytes = capacity.model_bytes - table_bytes
    block_parameters = (read_bytes - table_bytes) / 2
    token_bytes = capacity.kv_bytes / ((capacity.num_pages + 1) * capacity.page_size)
    rows = []
    for count in batches:
        if count * -(-CONTEXT // capacity.page_size) > capacity.num_pages:
            print(f"{shape}: no room for {count} sequences", file=sys.stderr)
            break
        sequences = Sequences(backend, capacity, count)
        began_s = time.perf_counter()
        sequences.prefill()
        prefill_s = time.perf_counter() - began_s
        sequences.step()
        began_s = time.perf_counter()
        for _ in range(NUM_STEPS):
            sequences.step()
        step_s = (time.perf_counter() - began_s) / NUM_STEPS
        least_s = (read_bytes + count * PROMPT * token_bytes) / machine.bytes_per_s
        operations = 2 * block_parameters * PROMPT * count
        rows.append(
            {
                "shape": shape,
                "batch": count,
                "decode tokens/s": count / step_s,
                "step ms": step_s * 1000,
                "of bandwidth": least_s / step_s,
                "whole tokens/s": count * NUM_STEPS / (prefill_s + NUM_STEPS * step_s),
                "prefill tokens/s": PROMPT * count / prefill_s,
                "of compute": operations / prefill_s / machine.operations_per_s,
            }
        )
        for slot in range(count):
            backend.trim(slot, 0)
    backend.close()
    torch.cuda.empty_cache()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="three batch sizes, the smallest shape")
    parser.add_argument("--shapes", default="0.6B,1.7B,8B")
    arguments = parser.parse_args()
    machine = Machine()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copies {machine.bytes_per_s / 1e9:.0f} GB/s, "
        f"multiplies {machine.operations_per_s / 1e12:.0f} TFLOP/s"
    )
    names = ["0.6B"] if arguments.quick else arguments.shapes.split(",")
    batches = QUICK_BATCHES if arguments.quick else BATCHES
    rows = []
    with TemporaryDirectory() as folder:
        small = write_model(Path(folder, "small"), SHAPES["tiny"])
        difference = agreement(small, RuntimeSettings(torch=TorchSettings(device="cuda")))
        print(f"logits against plain torch in fp32: {difference:.4f} of their spread")
        assert difference < 0.1, "the GPU computes something else"
        for name in names:
            path = write_model(Path(folder, name), SHAPES[name])
            rows += measure(path, name, batches, machine)
            theirs = transformers_rate(path, rows[-1]["batch"], PROMPT, NUM_STEPS)
            if theirs is not None:
                ratio = rows[-1]["whole tokens/s"] / theirs
                print(
                    f"{name}, {rows[-1]['batch']} sequences, prompts included: transformers' continuous batching "
                    f"{theirs:.0f} tokens/s; ours {ratio:.2f} times that"
                )
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    print(json.dumps(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
