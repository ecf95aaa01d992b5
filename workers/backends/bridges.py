"""Which idle slots a batch of llama.cpp computes in vain, to need fewer passes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .backend import Chunk

MAX_BRIDGE = 4
"""How many idle slots may lie between two that decode for one pass to be cheaper than two: a pass reads all weights
again, which takes as long as about four more rows (SmolLM2-135M in Q8_0 on two cores: 19 ms against 4.5)."""


def bridges(chunks: Sequence[Chunk]) -> list[int]:
    """Slots without work, in order, that should compute one token in vain.

    llama.cpp computes neighbouring slots in one pass and begins another at every gap. `chunks` are in the order of
    their slots; those of many tokens have passes to themselves after their first token.
    """
    present = {chunk.slot for chunk in chunks}
    decoding = [chunk.slot for chunk in chunks if len(chunk.tokens) == 1]
    slots: list[int] = []
    for left, right in pairwise(decoding):
        idle = [slot for slot in range(left + 1, right) if slot not in present]
        if len(idle) <= MAX_BRIDGE:
            slots += idle
    return slots
