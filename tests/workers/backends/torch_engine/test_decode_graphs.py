"""What a graph's buffers hold, on the CPU: the rows of a batch, and rows that compute in a spare page."""

from __future__ import annotations

from pathlib import Path

import torch
from harness.torch_model import CPU, Forward, random_model

from inferflux.workers.backends.backend import Chunk, SamplingParams
from inferflux.workers.backends.torch_engine.checkpoint import open_checkpoint
from inferflux.workers.backends.torch_engine.decode_graphs import DecodeGraphs
from inferflux.workers.backends.torch_engine.step import Step, make_step

SPARE_PAGE = 15
TOKENS = [(5 * position + 3) % 320 for position in range(40)]


@torch.inference_mode()
def test_a_padded_step_gives_what_the_batch_gives(tmp_path: Path) -> None:
    random_model("qwen3", tmp_path)
    forward = Forward(open_checkpoint(tmp_path))

    def compute(step: Step) -> torch.Tensor:
        return forward.decoder.logits(forward.decoder.hidden(step, forward.pages)[step.outputs])

    def steps(length: int) -> Step:
        chunks = [
            Chunk(
                slot=slot,
                start=length - 1 + slot,
                tokens=TOKENS[length - 1 + slot : length + slot],
                block_table=range(5 * slot, 5 * slot + 5),
                sampling=SamplingParams(),
            )
            for slot in range(3)
        ]
        return make_step(chunks, 16, CPU)

    for slot in range(3):
        prompt = Chunk(slot=slot, start=0, tokens=TOKENS[: 20 + slot], block_table=range(5 * slot, 5 * slot + 5))
        forward.decoder.hidden(make_step([prompt], 16, CPU), forward.pages)
    graphs = DecodeGraphs(compute, max_sequences=8, length=256, page_size=16, spare_page=SPARE_PAGE)
    own = graphs.blank(4, CPU)
    kept = [layer.keys[:SPARE_PAGE].clone() for layer in forward.pages]
    compute(own)
    assert all(torch.equal(layer.keys[:SPARE_PAGE], keys) for layer, keys in zip(forward.pages, kept, strict=True))
    for length in (21, 22):
        graphs.fill(own, steps(length))
        torch.testing.assert_close(compute(own)[:3], compute(steps(length)))
    assert graphs.run(steps(21)) is None, "nothing is captured on a CPU"
