"""A plan: what one step computes, and what has to be in place before."""

from __future__ import annotations

import msgspec

from ..backends.backend import Chunk
from .sequence import Sequence


class Placement(msgspec.Struct, frozen=True):
    """Before the batch runs, `slot` must hold `num_tokens` of a prefix: copied from `source`, or its own when None.

    `lost` names the pages that go with that and lie in no other slot.
    """

    slot: int
    source: int | None
    num_tokens: int
    lost: tuple[bytes, ...] = ()


class Plan(msgspec.Struct):
    """One step: placements in this order, then the batch; `sequences[i]` owns `batch[i]`."""

    placements: list[Placement]
    sequences: list[Sequence]
    batch: list[Chunk]
