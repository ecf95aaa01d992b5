"""The pace: what a long prompt may cost the streams beside it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferflux.workers.engine.pace import MIN_TOKENS, STRETCH, Pace


def seen(decode_s: float, token_s: float, num_decodes: int = 8) -> Pace:
    pace = Pace()
    for _ in range(20):
        pace.observe(num_decodes, 0, decode_s)
        pace.observe(num_decodes, 100, decode_s + 100 * token_s)
    return pace


def test_nothing_is_bounded_before_both_were_seen() -> None:
    pace = Pace()
    assert pace.room(8, 1) is None
    pace.observe(8, 0, 0.03)
    assert pace.room(8, 1) is None
    pace.observe(8, 64, 0.15)
    assert pace.room(8, 1) is not None


def test_one_prompt_stretches_a_step_by_a_known_factor() -> None:
    pace = seen(decode_s=0.03, token_s=0.002)
    room = pace.room(8, 1)
    assert room is not None
    assert abs(room * 0.002 - STRETCH * 0.03) < 0.003


def test_many_prompts_share_a_longer_step() -> None:
    pace = seen(decode_s=0.03, token_s=0.002)
    one, ten = pace.room(8, 1), pace.room(8, 10)
    assert one is not None
    assert ten is not None
    assert abs(ten - 10 * one) <= 10


def test_a_prompt_always_goes_on() -> None:
    assert seen(decode_s=0.001, token_s=0.1).room(8, 1) == MIN_TOKENS


def test_a_number_of_decodes_that_was_not_seen_is_taken_like_its_neighbour() -> None:
    pace = seen(decode_s=0.03, token_s=0.002)
    assert pace.room(32, 1) == pace.room(8, 1)


def test_prompts_that_cost_nothing_are_not_held_back() -> None:
    room = seen(decode_s=0.005, token_s=0.0).room(8, 1)
    assert room is not None
    assert room > 100_000


@given(
    st.floats(0.001, 0.5),
    st.floats(0.0001, 0.05),
    st.integers(1, 64),
    st.integers(1, 64),
)
def test_a_step_stays_within_the_stretch_or_takes_the_least(
    decode_s: float, token_s: float, num_decodes: int, num_prompts: int
) -> None:
    room = seen(decode_s, token_s, num_decodes).room(num_decodes, num_prompts)
    assert room is not None
    assert room == MIN_TOKENS or room * token_s <= STRETCH * num_prompts * decode_s * 1.01
