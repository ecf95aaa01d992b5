"""What the backend alone could give: the prompts' new tokens and the answers, without server, queue or scheduler.

    python benchmarks/ceiling.py FILE --sequences 32 --prefix 250 --prompt 68 --tokens 64

Prints JSON: seconds for all prompts (several to a pass, a shared prefix copied before the clock starts) and for all
decode steps, and the tokens per second of both together.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path

import msgspec

from inferflux.config.settings import LlamaCppSettings, RuntimeSettings, SchedulerSettings
from inferflux.workers.backends.backend import Backend, Chunk, SamplingParams
from inferflux.workers.backends.opening import open_backend

GREEDY = SamplingParams(temperature=0.0)
PASS_TOKENS = 512


class Ceiling(msgspec.Struct, frozen=True):
    """Seconds of prefill and of decoding, and output tokens per second of both together."""

    prefill_s: float
    decode_s: float
    tokens_per_s: float


def measure(backend: Backend, num_sequences: int, num_prefix: int, num_prompt: int, num_tokens: int) -> Ceiling:
    """The backend is started and has a slot for each sequence."""
    draw = random.Random(1)
    prefix = draw.choices(range(1000, 9000), k=num_prefix)
    sequences = [prefix + draw.choices(range(1000, 9000), k=num_prompt) for _ in range(num_sequences)]
    if num_prefix:
        for start in range(0, num_prefix, PASS_TOKENS):
            backend.run([Chunk(slot=0, start=start, tokens=prefix[start : start + PASS_TOKENS], block_table=())])
        for slot in range(1, num_sequences):
            backend.fork(0, slot, num_prefix)
    began_s = time.perf_counter()
    for first in range(0, num_sequences, max(1, PASS_TOKENS // num_prompt)):
        slots = range(first, min(num_sequences, first + max(1, PASS_TOKENS // num_prompt)))
        _advance(backend, sequences, slots, num_prefix)
    prefilled_s = time.perf_counter()
    for _ in range(num_tokens - 1):
        _advance(backend, sequences, range(num_sequences), len(sequences[0]) - 1)
    ended_s = time.perf_counter()
    return Ceiling(prefilled_s - began_s, ended_s - prefilled_s, num_sequences * num_tokens / (ended_s - began_s))


def _advance(backend: Backend, sequences: list[list[int]], slots: range, start: int) -> None:
    """Compute what the sequences of these slots have from `start` on, and append a token to each."""
    chunks = [
        Chunk(
            slot=slot,
            start=start,
            tokens=sequences[slot][start:],
            block_table=(),
            sampling=GREEDY,
            history=sequences[slot],
            num_prompt_tokens=len(sequences[slot]),
        )
        for slot in slots
    ]
    for chunk, sample in zip(chunks, backend.run(chunks), strict=True):
        assert sample.token is not None
        sequences[chunk.slot].append(sample.token)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--prefix", type=int, default=0)
    parser.add_argument("--prompt", type=int, default=68)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    settings = RuntimeSettings(
        scheduler=SchedulerSettings(max_batch_size=arguments.sequences),
        llamacpp=LlamaCppSettings(threads=arguments.threads),
    )
    backend = open_backend("llamacpp", str(arguments.gguf), settings)
    backend.start()
    ceiling = measure(backend, arguments.sequences, arguments.prefix, arguments.prompt, arguments.tokens)
    backend.close()
    os.write(sys.stdout.fileno(), msgspec.json.encode(ceiling) + b"\n")


if __name__ == "__main__":
    main()
