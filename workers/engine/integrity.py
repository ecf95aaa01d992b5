"""Whether an engine's books agree with each other, and with what the backend says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .scheduler import Scheduler


def check_books(scheduler: Scheduler) -> None:
    """Raises AssertionError when pool, slots and sequences disagree."""
    pool, slots, capacity = scheduler.pool, scheduler.slots, scheduler.capacity
    pool.check_integrity(sequence.block_table for sequence in scheduler.running)
    assert all(not sequence.block_table and sequence.slot is None for sequence in scheduler.waiting)
    busy = {sequence.slot for sequence in scheduler.running}
    assert len(busy) == len(scheduler.running), "two sequences share a slot"
    assert len(busy) + slots.num_idle == capacity.max_sequences, "a slot is neither idle nor in use"
    for sequence in scheduler.running:
        assert sequence.num_computed < len(sequence.tokens) <= scheduler.max_length, "a sequence is past its end"
    if not capacity.pages_shared:
        for slot in range(capacity.max_sequences):
            held = slots.held(slot)
            assert len(pool.match(held)) == len(held), "a slot holds a page that the pool does not know"


def check_backend(scheduler: Scheduler, num_computed: Callable[[int], int]) -> None:
    """Raises AssertionError when the backend's own count of a slot's tokens says otherwise than the books."""
    for sequence in scheduler.running:
        assert sequence.slot is not None
        num = num_computed(sequence.slot)
        assert num == sequence.num_computed, f"a slot has {num} tokens, its sequence {sequence.num_computed}"
    for slot in scheduler.slots.idle:
        num_named = len(scheduler.slots.content(slot)) * scheduler.pool.page_size
        assert num_computed(slot) >= num_named, f"idle slot {slot} has {num_computed(slot)} of {num_named} tokens"
