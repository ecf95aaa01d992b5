from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inferflux.workers.engine.pages import PagePool, chain_hash, root_hash

NUM_PAGES = 6


def test_a_released_page_is_found_by_its_hash_until_it_is_taken() -> None:
    evicted: list[bytes] = []
    pool = PagePool(2, 4, on_evict=evicted.append)
    pages = pool.allocate(1)
    assert pages is not None
    pool.seal(pages[0], b"first")
    pool.release(pages)
    assert pool.match([b"first", b"second"]) == pages
    assert (pool.num_used, pool.num_cached, pool.num_available) == (0, 1, 2)
    assert pool.allocate(3) is None
    assert pool.allocate(2) is not None
    assert evicted == [b"first"]
    assert pool.match([b"first"]) == []


def test_bare_pages_go_first_then_the_tail_of_what_was_let_go_longest_ago() -> None:
    evicted: list[bytes] = []
    pool = PagePool(5, 4, on_evict=evicted.append)
    old = pool.allocate(2)
    new = pool.allocate(2)
    assert old is not None
    assert new is not None
    for name, pages in (("old", old), ("new", new)):
        for number, page in enumerate(pages):
            pool.seal(page, f"{name}{number}".encode())
    pool.release(old)
    pool.release(new)
    for _ in range(5):
        pool.allocate(1)
    assert evicted == [b"old1", b"old0", b"new1", b"new0"]


def test_equal_content_is_one_page() -> None:
    pool = PagePool(2, 4)
    first, second = pool.allocate(2) or ()
    assert pool.seal(first, b"same") == first
    assert pool.seal(second, b"same") == first
    pool.check_integrity([[first], [first]])
    assert pool.num_used == 1


def test_a_forgotten_page_is_no_longer_found_but_a_held_one_stays() -> None:
    pool = PagePool(2, 4)
    (page,) = pool.allocate(1) or ()
    pool.seal(page, b"content")
    pool.forget(b"content")
    assert pool.match([b"content"]) == [page]
    pool.release([page])
    pool.forget(b"content")
    assert pool.match([b"content"]) == []
    pool.check_integrity([])


def test_chains_differ_by_model_salt_and_everything_before() -> None:
    roots = {root_hash("model", "a"), root_hash("model", "b"), root_hash("other", "a"), root_hash("mode", "la")}
    assert len(roots) == 4
    assert len({chain_hash(root, (1, 2, 3, 4)) for root in roots}) == 4


class PoolMachine(RuleBasedStateMachine):
    """Block tables that grow, share, seal and go; after every move the pool agrees with them."""

    def __init__(self) -> None:
        super().__init__()
        self.evicted: set[bytes] = set()
        self.pool = PagePool(NUM_PAGES, 4, on_evict=self.evicted.add)
        self.tables: list[list[int]] = []

    @rule(count=st.integers(0, NUM_PAGES + 1))
    def allocate(self, count: int) -> None:
        available = self.pool.num_available
        pages = self.pool.allocate(count)
        assert (pages is None) == (count > available)
        if pages is not None:
            self.tables.append(pages)

    @rule(length=st.integers(1, 3), name=st.integers(0, 2))
    def share_a_prefix(self, length: int, name: int) -> None:
        pages = self.pool.match([f"{name}/{index}".encode() for index in range(length)])
        self.pool.hold(pages)
        self.tables.append(pages)

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data(), name=st.integers(0, 2))
    def seal(self, data: st.DataObject, name: int) -> None:
        table = data.draw(st.sampled_from([table for table in self.tables if table]))
        names = {page: page_hash for page_hash, page in self.pool._page_of.items()}
        for index, page in enumerate(table):
            if page not in names:
                table[index] = self.pool.seal(page, f"{name}/{index}".encode())
                return

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @rule(name=st.integers(0, 2), index=st.integers(0, 3))
    def forget(self, name: int, index: int) -> None:
        self.pool.forget(f"{name}/{index}".encode())

    @invariant()
    def integrity(self) -> None:
        self.pool.check_integrity(self.tables)
        assert self.pool.num_used + self.pool.num_available == NUM_PAGES


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
