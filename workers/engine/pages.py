"""The page pool: who holds which page of the KV cache, and what the pages that nobody holds still contain."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence

DIGEST_BYTES = 16


def root_hash(fingerprint: str, salt: str) -> bytes:
    """Where the chain of one prefix cache begins: another model or another salt shares no page."""
    text = f"{len(fingerprint)}:{fingerprint}{salt}".encode()
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()


def chain_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Names a full page together with everything before it."""
    return hashlib.blake2b(parent + array("I", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


class PagePool:
    """Fixed-size pages, reference counted. A page that is let go keeps its hash until it is taken again, so the free
    list, in order of last use, is the prefix cache. A hash names one page at most.

    `num_cached` counts the pages that nobody holds and that still name a prefix. `on_evict` hears the hash of such a
    page before it is taken for something else.
    """

    def __init__(self, num_pages: int, page_size: int, on_evict: Callable[[bytes], None] | None = None) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.num_cached = 0
        self._on_evict = on_evict
        self._num_holders = [0] * num_pages
        self._hashes: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        # Pages without content come first, then cached ones, least recently used first.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))

    @property
    def num_available(self) -> int:
        """Pages that can be allocated now, cached ones included."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_pages - len(self._free)

    def num_pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    @property
    def cached(self) -> list[bytes]:
        """What the pages name that nobody holds, most recently used first."""
        return [page_hash for page in reversed(self._free) if (page_hash := self._hashes[page]) is not None]

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The pages of the longest known prefix of a chain; they are not held until `hold` is called."""
        pages = []
        for page_hash in hashes:
            page = self._page_of.get(page_hash)
            if page is None:
                break
            pages.append(page)
        return pages

    def hold(self, pages: Iterable[int]) -> None:
        for page in pages:
            if not self._num_holders[page]:
                del self._free[page]
                self.num_cached -= self._hashes[page] is not None
            self._num_holders[page] += 1

    def allocate(self, count: int) -> list[int] | None:
        """That many pages, held once; None and no change when there are not enough."""
        if count > len(self._free):
            return None
        pages = []
        for _ in range(count):
            page, _ = self._free.popitem(last=False)
            page_hash = self._hashes[page]
            if page_hash is not None:
                if self._on_evict is not None:
                    self._on_evict(page_hash)
                self._hashes[page] = None
                del self._page_of[page_hash]
                self.num_cached -= 1
            self._num_holders[page] = 1
            pages.append(page)
        return pages

    def seal(self, page: int, page_hash: bytes) -> int:
        """Name a held page that is now full. Returns the page to use in its place: another one already had this
        content if the result differs, and the hold has moved to it."""
        known = self._page_of.setdefault(page_hash, page)
        if known == page:
            self._hashes[page] = page_hash
        else:
            self.hold((known,))
            self.release((page,))
        return known

    def release(self, pages: Sequence[int]) -> None:
        """Let go of one hold on each page. The tail of a prefix is evicted before its head."""
        for page in reversed(pages):
            self._num_holders[page] -= 1
            if not self._num_holders[page]:
                self._free[page] = None
                if self._hashes[page] is None:
                    self._free.move_to_end(page, last=False)
                else:
                    self.num_cached += 1

    def forget(self, page_hash: bytes) -> None:
        """The content of a cached page is gone. Pages that are held are not affected."""
        page = self._page_of.get(page_hash)
        if page is not None and not self._num_holders[page]:
            del self._page_of[page_hash]
            self._hashes[page] = None
            self.num_cached -= 1
            self._free.move_to_end(page, last=False)

    def forget_cached(self) -> None:
        """The content of every page that nobody holds is gone."""
        for page_hash in [self._hashes[page] for page in self._free]:
            if page_hash is not None:
                self.forget(page_hash)

    def check_integrity(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Raises AssertionError unless holds, free list and hashes agree with each other and with `block_tables`."""
        holders = Counter(page for table in block_tables for page in table)
        for page, num_holders in enumerate(self._num_holders):
            assert num_holders == holders[page], f"page {page}: {num_holders} holds, {holders[page]} in block tables"
            assert (page in self._free) == (num_holders == 0), f"page {page}: free list and holds disagree"
        named = {page_hash: page for page, page_hash in enumerate(self._hashes) if page_hash is not None}
        assert named == self._page_of, "the hash index and the pages' hashes disagree"
        num_cached = sum(self._hashes[page] is not None for page in self._free)
        assert self.num_cached == num_cached, f"{num_cached} pages are cached, {self.num_cached} are said to be"
        unnamed = self.num_pages - self.num_used - self.num_cached
        assert all(self._hashes[page] is None for page in list(self._free)[:unnamed]), (
            "a cached page goes before a bare one"
        )
