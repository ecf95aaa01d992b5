"""Which prefix each cached page ends, so that a page which is given away can be kept with all that comes before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

Match = Callable[[Sequence[bytes]], list[int]]


class Lost(msgspec.Struct, frozen=True):
    """A prefix whose last page has been given away, and where all of it lies until the next batch runs."""

    chain: tuple[bytes, ...]
    pages: list[int]


class PrefixChains:
    """For a backend whose pages can be read from any slot. `match` gives the pages of the longest known beginning."""

    def __init__(self, match: Match) -> None:
        self._match = match
        self._parents: dict[bytes, bytes | None] = {}
        self._lost: list[Lost] = []

    def add(self, chain: Iterable[bytes], parent: bytes | None = None) -> None:
        """These pages are named now; the first one follows `parent`."""
        for page_hash in chain:
            self._parents[page_hash] = parent
            parent = page_hash

    def evict(self, page_hash: bytes) -> None:
        """The page is about to be taken for something else."""
        if not (self._lost and page_hash in self._lost[-1].chain):
            chain = self._chain(page_hash)
            pages = self._match(chain)
            if len(pages) == len(chain):
                self._lost.append(Lost(chain, pages))
        self._parents.pop(page_hash, None)

    def take_lost(self) -> list[Lost]:
        """What was evicted since the last call."""
        lost, self._lost = self._lost, []
        return lost

    def keep(self, is_known: Callable[[bytes], bool]) -> None:
        """Forget every page that the pool does not know any more."""
        self._parents = {each: parent for each, parent in self._parents.items() if is_known(each)}
        self._lost.clear()

    def longest(self, page_hashes: Iterable[bytes]) -> list[tuple[bytes, ...]]:
        """The prefixes that these pages end and no other page goes on from, in their order."""
        inner = set(self._parents.values())
        return [self._chain(each) for each in page_hashes if each in self._parents and each not in inner]

    def _chain(self, page_hash: bytes) -> tuple[bytes, ...]:
        chain: list[bytes] = []
        following: bytes | None = page_hash
        while following is not None:
            chain.append(following)
            following = self._parents.get(following)
        return tuple(reversed(chain))
