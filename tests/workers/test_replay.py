from hypothesis import given
from hypothesis import strategies as st

from inferflux.broker.broker import Tape, TapeEntry
from inferflux.broker.subjects import RequestKey
from inferflux.broker.wire import Failure, Frame, Usage, encode
from inferflux.workers.replay import Replay
from inferflux.workers.seal import RequestSeal, Sealer

SEAL = Sealer(b"a secret of the workers").request(RequestKey("a-r", "r"), 1)


def frame(index: int, tokens: list[int], *, attempt: int = 1, choice: int = 0, **rest: object) -> Frame:
    sealed = SEAL.seal(tokens, attempt=attempt, choice=choice, index=index)
    return Frame(id="r", attempt=attempt, choice=choice, index=index, num_tokens=len(tokens), sealed=sealed, **rest)


def replay(frames: list[Frame], seal: RequestSeal = SEAL) -> Replay:
    return Replay(Tape(None, 0, tuple(TapeEntry(seq, encode(each)) for seq, each in enumerate(frames))), seal)


def test_contiguous_tokens_of_each_choice_are_taken() -> None:
    result = replay([frame(0, [5, 6]), frame(0, [9], choice=1), frame(2, [7]), frame(4, [8])])
    assert result.choice(0).tokens == (5, 6, 7)
    assert result.choice(1).tokens == (9,)
    assert result.choice(2).tokens == ()


@given(st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=4))
def test_order_and_repetition_do_not_matter(order: list[int], repeated: list[int]) -> None:
    frames = [frame(index, [100 + index], attempt=1 + index // 3) for index in [*order, *repeated]]
    assert replay(frames).choice(0).tokens == (100, 101, 102, 103, 104, 105)


def test_a_finish_reason_ends_a_choice() -> None:
    result = replay([frame(0, [5]), frame(1, [6], finish_reason="stop")])
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
