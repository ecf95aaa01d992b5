"""The index of saved prefixes: which one holds most of a chain, and which ones go when there is no room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec


class Saved(msgspec.Struct, frozen=True):
    """A saved prefix: the chained hashes of its full pages, and the bytes it takes."""

    chain: tuple[bytes, ...]
    num_bytes: int

    @property
    def key(self) -> bytes:
        return self.chain[-1]


class PrefixIndex:
    """At most `max_bytes`, the least recently used prefix going first. A page's hash names all pages before it too."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._saved: OrderedDict[bytes, Saved] = OrderedDict()  # least recently used first
        self._holders: dict[bytes, dict[bytes, None]] = {}

    def __len__(self) -> int:
        return len(self._saved)

    def __contains__(self, page_hash: bytes) -> bool:
        """Whether some saved prefix holds this page, and so everything before it."""
        return page_hash in self._holders

    def get(self, key: bytes) -> Saved | None:
        return self._saved.get(key)

    def match(self, chain: Sequence[bytes]) -> tuple[Saved, int] | None:
        """The smallest saved prefix that holds most pages of the chain, and how many; it counts as used now."""
        for num_pages in range(len(chain), 0, -1):
            holders = self._holders.get(chain[num_pages - 1])
            if holders:
                key = min(holders, key=lambda each: self._saved[each].num_bytes)
                self._saved.move_to_end(key)
                return self._saved[key], num_pages
        return None

    def add(self, saved: Saved) -> list[Saved]:
        """Returns what has to go: prefixes that this one contains, and old ones when there is no room.

        It goes itself when it is larger than the bound.
        """
        if saved.num_bytes > self.max_bytes:
            return [saved]
        gone = [self.remove(key) for key in saved.chain if key in self._saved]
        while self.num_bytes + saved.num_bytes > self.max_bytes:
            gone.append(self.remove(next(iter(self._saved))))
        self._saved[saved.key] = saved
        self.num_bytes += saved.num_bytes
        for page_hash in saved.chain:
            self._holders.setdefault(page_hash, {})[saved.key] = None
        return gone

    def remove(self, key: bytes) -> Saved:
        """Raises KeyError when it is not there."""
        saved = self._saved.pop(key)
        self.num_bytes -= saved.num_bytes
        for page_hash in saved.chain:
            holders = self._holders[page_hash]
            del holders[key]
            if not holders:
                del self._holders[page_hash]
        return saved

    def clear(self) -> list[Saved]:
        """Returns what was there."""
        return [self.remove(key) for key in tuple(self._saved)]

    def check_integrity(self) -> None:
        """Raises AssertionError when holders, entries and bytes disagree."""
        assert self.num_bytes == sum(saved.num_bytes for saved in self._saved.values()) <= self.max_bytes
        named = {(page_hash, key) for key, saved in self._saved.items() for page_hash in saved.chain}
        assert named == {(page_hash, key) for page_hash, holders in self._holders.items() for key in holders}
