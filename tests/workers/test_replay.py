from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inferflux.broker.broker import Tape, TapeEntry
from inferflux.broker.subjects import RequestKey
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.requests import Failure, Frame, Usage
from inferflux.workers.replay import Replay
from inferflux.workers.seal import RequestSeal, Sealer

SEAL = Sealer(b"a secret of the workers").request(RequestKey("a-r", "r"), 1)


def frame(
    index: int, tokens: list[int], *, attempt: int = 1, choice: int = 0, before: Sequence[int] = (), **rest: Any
) -> Frame:
    """A frame after the tokens `before`; without them, after as many as its index says, counted from 100."""
    known = before or range(100, 100 + index)
    return Frame(
        id="r",
        attempt=attempt,
        choice=choice,
        index=index,
        num_tokens=len(tokens),
        sealed=SEAL.seal(tokens, attempt=attempt, choice=choice, index=index),
        hash=SEAL.running_hash(choice).update([*known, *tokens]),
        **rest,
    )


def replay(frames: list[Frame], seal: RequestSeal = SEAL) -> Replay:
    return Replay(Tape(None, 0, tuple(TapeEntry(seq, encode(each)) for seq, each in enumerate(frames))), seal)


def test_contiguous_tokens_of_each_choice_are_taken() -> None:
    frames = [frame(0, [100, 101]), frame(0, [9], choice=1), frame(2, [102]), frame(4, [104])]
    result = replay(frames)
    assert result.choice(0).tokens == (100, 101, 102)
    assert result.choice(1).tokens == (9,)
    assert result.choice(2).tokens == ()


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=4))
def test_what_is_sent_again_from_some_point_on_changes_nothing(resent: list[tuple[int, int]]) -> None:
    order = [index for first, last in resent for index in range(first, last)]
    frames = [frame(index, [100 + index]) for index in [*order, *range(6)]]
    assert replay(frames).choice(0).tokens == (100, 101, 102, 103, 104, 105)


def test_what_a_zombie_writes_after_its_successor_began_did_not_happen() -> None:
    successor = [frame(1, [7], attempt=5, before=[100]), frame(2, [8], attempt=5, before=[100, 7])]
    zombie = frame(1, [101, 102, 103])
    assert replay([frame(0, [100]), successor[0], zombie, successor[1]]).choice(0).tokens == (100, 7, 8)
    assert replay([frame(0, [100]), zombie, *successor]).choice(0).tokens == (100, 7, 8)


def test_tokens_that_do_not_make_their_hash_start_over() -> None:
    spliced = [frame(0, [100]), frame(1, [8], before=[99])]
    assert replay(spliced).choice(0).tokens == ()


def test_a_request_has_begun_with_its_first_token() -> None:
    assert replay([frame(0, [100])]).begun
    assert not replay([Frame(id="r", attempt=1)]).begun


def test_a_finish_reason_ends_a_choice() -> None:
    result = replay([frame(0, [100]), frame(1, [6], finish_reason="stop")])
    assert result.choice(0).finished
    assert not replay([frame(1, [6], finish_reason="stop")]).choice(0).finished


def test_the_terminal_frame_is_found_and_an_error_is_no_token() -> None:
    assert replay([frame(0, [5], usage=Usage(prompt_tokens=1))]).terminal is not None
    failed = replay([frame(0, [5]), Frame(id="r", attempt=1, error=Failure(code="engine_error", message="x"))])
    assert failed.terminal is not None
    assert failed.choice(0).tokens == (5,)


def test_what_was_sealed_under_another_secret_starts_over() -> None:
    other = Sealer(b"another secret entirely").request(RequestKey("a-r", "r"), 1)
    assert replay([frame(0, [5])], other).choice(0).tokens == ()
