"""What the backend knows of each slot: how much it holds, where, and what it is still to be given."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from torch import Tensor

from .kv_pages import KVPages


class Slot(msgspec.Struct):
    """`table` are the pages of the last run. `pending` is content for the first pages of the next one."""

    num_tokens: int = 0
    table: Sequence[int] = ()
    pending: Tensor | None = None


class Slots:
    """Pages belong to the engine, which names them when a sequence runs; until then, content that was loaded or copied
    for a slot waits here."""

    def __init__(self, num_slots: int, pages: KVPages) -> None:
        self._slots = [Slot() for _ in range(num_slots)]
        self._pages = pages

    def __getitem__(self, slot: int) -> Slot:
        return self._slots[slot]

    def enter(self, slot: int, table: Sequence[int], num_tokens: int) -> None:
        """The slot runs in these pages, up to `num_tokens`."""
        own = self._slots[slot]
        if own.pending is not None:
            self._pages.write(table[: own.pending.shape[1]], own.pending)
            own.pending = None
        own.table = tuple(table)
        own.num_tokens = num_tokens

    def content(self, slot: int, num_tokens: int) -> Tensor:
        """The pages of the slot's first tokens."""
        own = self._slots[slot]
        assert num_tokens <= own.num_tokens, "a slot has less than is asked of it"
        num_pages = -(-num_tokens // self._pages.page_size)
        if own.pending is not None:
            return own.pending[:, :num_pages]
        return self._pages.read(own.table[:num_pages])

    def give(self, slot: int, content: Tensor, num_tokens: int) -> None:
        """The slot holds this from its next run on."""
        self._slots[slot] = Slot(num_tokens=num_tokens, pending=content)

    def trim(self, slot: int, num_tokens: int) -> None:
        # More than the slot computed itself is no error: the pages of a cached prefix can be read from any slot.
        own = self._slots[slot]
        own.num_tokens = num_tokens
        if not num_tokens:
            own.pending, own.table = None, ()
