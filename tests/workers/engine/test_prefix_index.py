from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferflux.workers.engine.prefix_index import PrefixIndex, Saved


def saved(text: str, num_bytes: int = 10) -> Saved:
    """A chain with a page for each character; every page's hash names those before it too."""
    return Saved(tuple(text[:end].encode() for end in range(1, len(text) + 1)), num_bytes)


def test_the_longest_beginning_is_found_in_the_smallest_file() -> None:
    index = PrefixIndex(100)
    index.add(saved("abcd", 40))
    index.add(saved("abx", 20))
    assert index.match(saved("abcz").chain) == (saved("abcd", 40), 3)
    assert index.match(saved("abzz").chain) == (saved("abx", 20), 2)
    assert index.match(saved("z").chain) is None
    assert index.match(()) is None


def test_what_a_longer_prefix_contains_goes() -> None:
    index = PrefixIndex(100)
    index.add(saved("ab"))
    assert index.add(saved("abcd")) == [saved("ab")]
    assert b"ab" in index
    assert len(index) == 1


def test_the_least_recently_used_go_when_there_is_no_room() -> None:
    index = PrefixIndex(30)
    for text in "abc":
        index.add(saved(text))
    index.match(saved("a").chain)
    assert index.add(saved("d", 20)) == [saved("b"), saved("c")]
    assert index.num_bytes == 30


def test_what_is_larger_than_the_bound_is_not_taken() -> None:
    index = PrefixIndex(30)
    index.add(saved("a"))
    assert index.add(saved("b", 31)) == [saved("b", 31)]
    assert b"a" in index


texts = st.text("ab", min_size=1, max_size=5)


@given(st.lists(st.tuples(st.sampled_from(("add", "match", "remove")), texts, st.integers(1, 20)), max_size=60))
def test_whatever_happens_the_index_agrees_with_itself(moves: list[tuple[str, str, int]]) -> None:
    index = PrefixIndex(50)
    for move, text, num_bytes in moves:
        chain = saved(text).chain
        if move == "add" and chain[-1] not in index:
            index.add(saved(text, num_bytes))
        elif move == "remove" and index.get(chain[-1]) is not None:
            index.remove(chain[-1])
        elif move == "match":
            found = index.match(chain)
            assert (found is None) == (chain[0] not in index)
            if found is not None:
                assert found[0].chain[: found[1]] == chain[: found[1]]
                assert found[1] == len(chain) or chain[found[1]] not in index
        index.check_integrity()
