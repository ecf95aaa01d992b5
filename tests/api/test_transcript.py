from __future__ import annotations

from typing import Any

import pytest

from inferflux.api.transcript import Transcript, Verdict
from inferflux.broker.wire.requests import Frame


def frame(index: int, *, attempt: int = 1, num_tokens: int = 1, **fields: Any) -> Frame:
    """A frame whose hash follows from its end, as a deterministic engine's would."""
    defaults = {"hash": f"h{index + num_tokens}", "text": "x"}
    return Frame(id="r", attempt=attempt, index=index, num_tokens=num_tokens, **(defaults | fields))


def judged(*frames: Frame) -> list[Verdict]:
    transcript = Transcript()
    return [transcript.judge(each) for each in frames]


def test_each_token_is_news_once() -> None:
    assert judged(frame(0), frame(1), frame(0), frame(1), frame(2)) == [
        Verdict.NEW,
        Verdict.NEW,
        Verdict.OLD,
        Verdict.OLD,
        Verdict.NEW,
    ]


def test_tokens_missing_before_a_frame_are_a_hole_that_can_be_filled() -> None:
    assert judged(frame(0), frame(2), frame(1), frame(2)) == [Verdict.NEW, Verdict.HOLE, Verdict.NEW, Verdict.NEW]


def test_choices_are_apart() -> None:
    assert judged(frame(0), frame(0, choice=1), frame(1, choice=1), frame(2)) == [
        Verdict.NEW,
        Verdict.NEW,
        Verdict.NEW,
        Verdict.HOLE,
    ]


def test_new_attempt_continues_from_the_hash() -> None:
    assert judged(frame(0), frame(1, attempt=5, prev="h1"), frame(2, attempt=5)) == [Verdict.NEW] * 3


@pytest.mark.parametrize("prev", ["other", None])
def test_new_attempt_from_another_hash_diverges(prev: str | None) -> None:
    assert judged(frame(0), frame(1, attempt=5, prev=prev))[-1] is Verdict.DIVERGED


def test_new_attempt_from_the_start_is_checked_where_it_catches_up() -> None:
    again = [frame(index, attempt=5) for index in range(3)]
    again[0] = frame(0, attempt=5, prev="h0")

    assert judged(frame(0), frame(1), *again) == [Verdict.NEW, Verdict.NEW, Verdict.OLD, Verdict.OLD, Verdict.NEW]
    other = frame(1, attempt=5, hash="other")
    assert judged(frame(0), frame(1), again[0], other)[-1] is Verdict.DIVERGED


def test_repetition_that_overlaps_only_partly_diverges() -> None:
    assert judged(frame(0), frame(0, attempt=5, num_tokens=2))[-1] is Verdict.DIVERGED


def test_replaced_attempt_is_not_heard_any_more() -> None:
    assert judged(frame(0), frame(1, attempt=5, prev="h1"), frame(2, attempt=1))[-1] is Verdict.OLD


def test_finished_choice_takes_no_more() -> None:
    end = frame(1, num_tokens=0, finish_reason="stop")
    assert judged(frame(0), end, end, frame(1)) == [Verdict.NEW, Verdict.NEW, Verdict.OLD, Verdict.OLD]


def test_text_without_tokens_is_news_once() -> None:
    late = frame(1, num_tokens=0, text="late")
    assert judged(frame(0), late, late, frame(1)) == [Verdict.NEW, Verdict.NEW, Verdict.OLD, Verdict.NEW]


def test_embedding_is_news_once() -> None:
    vector = Frame(id="r", attempt=1, embedding=(1.0,))
    assert judged(vector, vector) == [Verdict.NEW, Verdict.OLD]
