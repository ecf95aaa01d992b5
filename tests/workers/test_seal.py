import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferflux.broker.subjects import RequestKey
from inferflux.broker.wire.requests import Frame
from inferflux.workers.seal import Sealer

KEY = RequestKey("a-replica", "request-1")
TOKENS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8)


def sealed_frame(sealer: Sealer, tokens: list[int], *, prompt_seq: int = 7, index: int = 3) -> Frame:
    sealed = sealer.request(KEY, prompt_seq).seal(tokens, attempt=9, choice=1, index=index)
    return Frame(id="request-1", attempt=9, choice=1, index=index, num_tokens=len(tokens), sealed=sealed)


@given(TOKENS)
def test_what_is_sealed_comes_back(tokens: list[int]) -> None:
    sealer = Sealer(b"a secret of the workers")
    assert sealer.request(KEY, 7).unseal(sealed_frame(sealer, tokens)) == tuple(tokens)


def test_other_secret_prompt_or_position_opens_nothing() -> None:
    sealer = Sealer(b"a secret of the workers")
    frame = sealed_frame(sealer, [1, 2])
    moved = sealed_frame(sealer, [1, 2], index=4)
    assert Sealer(b"another secret entirely").request(KEY, 7).unseal(frame) is None
    assert sealer.request(KEY, 8).unseal(frame) is None
    assert sealer.request(RequestKey("t-x", "request-1"), 7).unseal(frame) is None
    frame_at_3 = Frame(id=frame.id, attempt=9, choice=1, index=3, num_tokens=2, sealed=moved.sealed)
    assert sealer.request(KEY, 7).unseal(frame_at_3) is None


def test_sealed_ids_do_not_show_equal_tokens() -> None:
    sealer = Sealer(b"a secret of the workers")
    assert sealed_frame(sealer, [5], index=1).sealed != sealed_frame(sealer, [5], index=2).sealed


@given(TOKENS, st.integers(0, 8))
def test_running_hash_does_not_depend_on_how_tokens_were_grouped(tokens: list[int], cut: int) -> None:
    seal = Sealer(b"a secret of the workers").request(KEY, 7)
    whole, parts = seal.running_hash(0), seal.running_hash(0)
    parts.update(tokens[:cut])
    assert whole.update(tokens) == parts.update(tokens[cut:])


def test_running_hash_is_keyed_and_separates_choices() -> None:
    one = Sealer(b"a secret of the workers").request(KEY, 7)
    other = Sealer(b"another secret entirely").request(KEY, 7)
    hashes = {one.running_hash(0).update([5]), one.running_hash(1).update([5]), other.running_hash(0).update([5])}
    assert len(hashes) == 3


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Sealer(b"short")
