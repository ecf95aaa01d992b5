"""The KV cache: pages, the slots that hold them, and how sequences come to both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items

from ..backends.backend import Capacity
from .pages import PagePool, root_hash
from .plan import Placement
from .prefix_chains import PrefixChains
from .sequence import Sequence
from .slots import SlotTable


class KVCache:
    """Pages are counted in `pool`; `slots` says where they lie when a backend's slots do not share them, `chains` which
    prefixes they end when they do and somebody keeps what they lose."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self.slots = SlotTable(capacity.max_sequences)
        self.pool = PagePool(capacity.num_pages, capacity.page_size, on_evict=self._evict)
        self.chains: PrefixChains | None = None
        self._being_computed: dict[bytes, Sequence] = {}
        self.epoch = 0

    def prefix_of(self, sequence: Sequence) -> list[int] | None:
        """The cached pages that the sequence can start from; at least one token is left to compute.

        None when a sequence that runs and is not of a lower class is about to compute the next page of the same
        prefix: waiting for it computes nothing twice. That is how several samples of one prompt share its prefill.
        """
        if sequence.job.embed:
            return []
        self.name_pages(sequence)
        usable = sequence.usable_hashes(self.pool.page_size)
        pages = self.pool.match(usable)
        if len(pages) < len(usable):
            other = self._being_computed.get(usable[len(pages)])
            if other is not None and other.rank[0] <= sequence.rank[0]:
                return None
        return pages

    def name_pages(self, sequence: Sequence) -> None:
        """Hash every full page of its tokens, each once: for a long prompt, most of what looking for a prefix takes."""
        fingerprint = self._capacity.fingerprint
        root = root_hash(f"{fingerprint}/{self.epoch}" if self.epoch else fingerprint, sequence.job.salt)
        sequence.extend_hashes(root, self.pool.page_size)

    def place(self, sequence: Sequence, prefix: list[int]) -> Placement | None:
        """Give a sequence a slot and the pages for all its tokens; None when there are too few."""
        pool = self.pool
        pool.hold(prefix)
        pages = pool.allocate(pool.num_pages_for(len(sequence.tokens)) - len(prefix))
        if pages is None:
            pool.release(prefix)
            return None
        resident = [] if self._capacity.pages_shared else sequence.page_hashes[: len(prefix)]
        slot, source = self.slots.place(resident)
        lost = self.slots.lost_by(slot, resident)
        self._forget(self.slots.take(slot, resident))
        sequence.slot = slot
        sequence.block_table = prefix + pages
        sequence.num_computed = len(prefix) * pool.page_size
        sequence.num_sealed = len(prefix)
        for page_hash in sequence.page_hashes[len(prefix) :]:
            self._being_computed.setdefault(page_hash, sequence)
        return Placement(slot, source, sequence.num_computed, lost)

    def adopt(self, chain: Items[bytes]) -> Placement | None:
        """Name a prefix that is about to be put into an idle slot from outside; None when slots or pages are short.

        `clear` the slot if it does not work out.
        """
        if not self.slots.num_idle:
            return None
        pool = self.pool
        reserved = self.reserve(chain)
        if reserved is None:
            return None
        table, pages = reserved
        slot = self.slots.idle[0]
        lost = self.slots.lost_by(slot, chain)
        self._forget(self.slots.take(slot, ()))
        table += [pool.seal(page, page_hash) for page, page_hash in zip(pages, chain[len(table) :], strict=True)]
        for page_hash in chain:
            self.slots.extend(slot, page_hash)
        pool.release(table)
        self.slots.put(slot)
        return Placement(slot, None, len(chain) * pool.page_size, lost)

    def reserve(self, chain: Items[bytes]) -> tuple[list[int], list[int]] | None:
        """The pages of a prefix that are there, and new ones for the rest, all held; None when pages are short."""
        pool = self.pool
        table = pool.match(chain)
        pool.hold(table)
        pages = pool.allocate(len(chain) - len(table))
        if pages is None:
            pool.release(table)
            return None
        return table, pages

    def name(self, chain: Items[bytes], table: list[int], pages: list[int]) -> None:
        """Let go of what `reserve` gave; the new pages are filled, and can be found from now on."""
        known = len(table)
        sealed = [self.pool.seal(page, page_hash) for page, page_hash in zip(pages, chain[known:], strict=True)]
        if self.chains is not None:
            self.chains.add(chain)
        self.pool.release(table + sealed)

    def seal(self, sequence: Sequence) -> None:
        """Name the pages that have become full, so that others can start from them."""
        assert sequence.slot is not None
        self.name_pages(sequence)
        for index in range(sequence.num_sealed, sequence.num_computed // self.pool.page_size):
            page_hash = sequence.page_hashes[index]
            sequence.block_table[index] = self.pool.seal(sequence.block_table[index], page_hash)
            if not self._capacity.pages_shared:
                self.slots.extend(sequence.slot, page_hash)
            if self.chains is not None:
                self.chains.add((page_hash,), sequence.page_hashes[index - 1] if index else None)
            if self._being_computed.get(page_hash) is sequence:
                del self._being_computed[page_hash]
            sequence.num_sealed = index + 1

    def release(self, sequence: Sequence) -> None:
        """Take slot and pages back; full pages stay cached."""
        assert sequence.slot is not None
        for page_hash in sequence.page_hashes[sequence.num_sealed :]:
            if self._being_computed.get(page_hash) is sequence:
                del self._being_computed[page_hash]
        self.pool.release(sequence.block_table)
        self.slots.put(sequence.slot)
        sequence.block_table = []
        sequence.slot = None

    def clear(self, slot: int) -> None:
        """What the slot was said to hold is not there."""
        self._forget(self.slots.clear(slot))

    def forget_everything(self, epoch: int) -> None:
        """No sequence that comes from now on starts from what was computed in another epoch, be it still running."""
        self.epoch = epoch
        for slot in self.slots.idle:
            self.clear(slot)
        self.pool.forget_cached()
        if self.chains is not None:
            self.chains.keep(lambda page_hash: bool(self.pool.match((page_hash,))))

    def check_integrity(self, running: Items[Sequence]) -> None:
        """Raises AssertionError when pool, slots and the sequences that run disagree."""
        self.pool.check_integrity(sequence.block_table for sequence in running)
        busy = {sequence.slot for sequence in running}
        assert len(busy) == len(running), "two sequences share a slot"
        assert len(busy) + self.slots.num_idle == self._capacity.max_sequences, "a slot is neither idle nor in use"
        for page_hash, sequence in self._being_computed.items():
            assert sequence in running, "a sequence that does not run is said to compute a page"
            assert page_hash in sequence.page_hashes[sequence.num_sealed :]
        if not self._capacity.pages_shared:
            for slot in range(self._capacity.max_sequences):
                held = self.slots.held(slot)
                assert len(self.pool.match(held)) == len(held), "a slot holds a page that the pool does not know"

    def check_backend(self, running: Iterable[Sequence], num_computed: Callable[[int], int]) -> None:
        """Raises AssertionError when the backend's own count of a slot's tokens says otherwise."""
        for sequence in running:
            assert sequence.slot is not None
            num = num_computed(sequence.slot)
            assert num == sequence.num_computed, f"a slot has {num} tokens, its sequence {sequence.num_computed}"
        for slot in self.slots.idle:
            num_named = len(self.slots.content(slot)) * self.pool.page_size
            assert num_computed(slot) >= num_named, f"idle slot {slot} has {num_computed(slot)} of {num_named} tokens"

    def _evict(self, page_hash: bytes) -> None:
        self.slots.forget(page_hash)
        if self.chains is not None:
            self.chains.evict(page_hash)

    def _forget(self, hashes: Iterable[bytes]) -> None:
        for page_hash in hashes:
            self.pool.forget(page_hash)
