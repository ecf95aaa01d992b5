"""Which idle slots a batch computes in vain, so that llama.cpp needs fewer passes."""

from __future__ import annotations

import pytest

from inferflux.workers.backends.backend import Chunk
from inferflux.workers.backends.bridges import MAX_BRIDGE, bridges


def chunks(*slots: int, prompts: tuple[int, ...] = ()) -> list[Chunk]:
    """A decoding chunk in each of the slots, and a prompt of eight tokens in those of `prompts`."""
    return [
        Chunk(slot=slot, start=5, tokens=[1] * (8 if slot in prompts else 1), block_table=())
        for slot in sorted((*slots, *prompts))
    ]


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (chunks(), []),
        (chunks(3), []),
        (chunks(0, 1, 2), []),
        (chunks(0, 2, 3, 6), [1, 4, 5]),
        (chunks(0, 1 + MAX_BRIDGE), list(range(1, 1 + MAX_BRIDGE))),
        (chunks(0, 2 + MAX_BRIDGE), []),
        (chunks(0, 4, prompts=(2,)), [1, 3]),
        (chunks(prompts=(0, 2)), []),
        (chunks(0, prompts=(2,)), []),
    ],
)
def test_bridges_join_decoding_slots(batch: list[Chunk], expected: list[int]) -> None:
    assert bridges(batch) == expected
