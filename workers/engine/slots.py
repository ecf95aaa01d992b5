"""The slot table: which slot is idle, and which cached prefix each one physically holds."""

from __future__ import annotations

from collections.abc import Sequence


class SlotTable:
    """Slots of a backend that keeps a sequence's KV in a stream of its own: a cached page can only be used where it
    lies, or be copied from there. Content is named by page hashes; a hash names all pages before it too, so a slot
    that holds a hash holds the whole prefix. Slots stay empty here when the backend's pages can be read from any slot.
    """

    def __init__(self, num_slots: int) -> None:
        self._held: list[list[bytes]] = [[] for _ in range(num_slots)]
        self._holders: dict[bytes, set[int]] = {}
        self._idle: dict[int, None] = dict.fromkeys(range(num_slots))  # least recently used first
        self._unnamed: dict[int, tuple[bytes, ...]] = {}

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def idle(self) -> tuple[int, ...]:
        """Idle slots, least recently used first."""
        return tuple(self._idle)

    def held(self, slot: int) -> Sequence[bytes]:
        return self._held[slot]

    def content(self, slot: int) -> Sequence[bytes]:
        """What lies in the slot, pages included that the pool has given away since."""
        return self._unnamed.get(slot) or self._held[slot]

    def lost_by(self, slot: int, prefix: Sequence[bytes]) -> tuple[bytes, ...]:
        """What lies in an idle slot and nowhere else, were the slot to hold `prefix` alone; empty when nothing is."""
        content = self.content(slot)
        if not content or content[-1] in prefix or self._holders.get(content[-1], set()) - {slot}:
            return ()
        return tuple(content)

    def place(self, prefix: Sequence[bytes]) -> tuple[int, int | None]:
        """An idle slot for a sequence, and the slot to copy the prefix from unless the first one has it already.

        A slot that holds this prefix and nothing else is taken as it is; otherwise the least recently used one is.
        """
        holders = self._holders.get(prefix[-1], set()) if prefix else set()
        for slot in holders:
            if slot in self._idle and len(self._held[slot]) == len(prefix):
                return slot, None
        slot = next(iter(self._idle))
        if not holders or slot in holders:
            return slot, None
        return slot, next(iter(holders))

    def take(self, slot: int, prefix: Sequence[bytes]) -> list[bytes]:
        """Make an idle slot busy, holding `prefix` alone. Returns what no slot holds any more."""
        del self._idle[slot]
        self._unnamed.pop(slot, None)
        held = self._held[slot]
        num_kept = 0
        while num_kept < min(len(held), len(prefix)) and held[num_kept] == prefix[num_kept]:
            num_kept += 1
        lost = self._truncate(slot, num_kept)
        for page_hash in prefix[num_kept:]:
            self.extend(slot, page_hash)
        return lost

    def extend(self, slot: int, page_hash: bytes) -> None:
        """The slot's next page is computed."""
        self._held[slot].append(page_hash)
        self._holders.setdefault(page_hash, set()).add(slot)

    def put(self, slot: int) -> None:
        """Make a busy slot idle; it keeps what it holds."""
        self._idle[slot] = None

    def clear(self, slot: int) -> list[bytes]:
        """The slot's content is gone. Returns what no slot holds any more."""
        self._unnamed.pop(slot, None)
        return self._truncate(slot, 0)

    def forget(self, page_hash: bytes) -> None:
        """The pool has given this page away: whoever holds it can no longer count on it or on what follows."""
        for slot in tuple(self._holders.get(page_hash, ())):
            self._unnamed.setdefault(slot, tuple(self._held[slot]))
            self._truncate(slot, self._held[slot].index(page_hash))

    def _truncate(self, slot: int, num_pages: int) -> list[bytes]:
        lost = []
        held = self._held[slot]
        while len(held) > num_pages:
            page_hash = held.pop()
            holders = self._holders[page_hash]
            holders.discard(slot)
            if not holders:
                del self._holders[page_hash]
                lost.append(page_hash)
        return lost
