"""Subjects: any text becomes one token and comes back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferflux.broker import subjects
from inferflux.broker.subjects import MAX_TOKEN, Lane, RequestKey, ServiceClass

TEXT = st.text(min_size=1, max_size=50).filter(
    lambda text: all(not 0xD800 <= ord(char) <= 0xDFFF for char in text) and 3 * len(text.encode()) <= MAX_TOKEN
)
LANES = st.builds(Lane, TEXT, st.sampled_from(ServiceClass), TEXT)
KEYS = st.builds(RequestKey, TEXT, TEXT)


@given(TEXT)
def test_token_is_plain_and_comes_back(text: str) -> None:
    token = subjects.encode_token(text)
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", token)
    assert subjects.decode_token(token) == text


@given(TEXT, TEXT)
def test_different_texts_have_different_tokens(first: str, second: str) -> None:
    assert (subjects.encode_token(first) == subjects.encode_token(second)) == (first == second)


@given(st.text(max_size=30))
def test_what_decodes_was_encoded(token: str) -> None:
    try:
        text = subjects.decode_token(token)
    except ValueError:
        return
    assert subjects.encode_token(text) == token


@pytest.mark.parametrize("token", ["", "a.b", "a*", ">", "a b", "=2f", "=61", "=", "=F", "a=GG", "é", "=FF"])
def test_foreign_tokens_are_refused(token: str) -> None:
    with pytest.raises(ValueError):
        subjects.decode_token(token)


@pytest.mark.parametrize("text", ["", "x" * 201, "é" * 34])
def test_text_that_cannot_be_a_token_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        subjects.encode_token(text)


@given(LANES)
def test_lane_comes_back_from_its_subjects(lane: Lane) -> None:
    subject = subjects.infer(lane)
    assert subjects.parse_lane(subject) == lane
    assert subjects.parse_lane(subject.replace(".infer.", ".bell.", 1)) == lane
    assert matches(subjects.INFER_ALL, subject)
    assert matches(subjects.infer_filter(lane.model), subject)
    assert matches(subjects.infer_of(lane.tenant, lane.service_class), subject)


@given(LANES, LANES)
def test_consumers_are_named_apart(first: Lane, second: Lane) -> None:
    assert (subjects.consumer(first) == subjects.consumer(second)) == (first == second)
    assert not set(subjects.consumer(first)) & set(".*>/\\ \t\r\n")


def test_long_consumer_names_stay_within_bounds_and_apart() -> None:
    lanes = [Lane("m" * MAX_TOKEN, ServiceClass.DEFAULT, "t" * 190 + end) for end in ("a", "b")]
    names = {subjects.consumer(lane) for lane in lanes}
    assert len(names) == 2
    assert all(len(name) <= 255 for name in names)


@given(KEYS)
def test_key_comes_back_from_its_subjects(key: RequestKey) -> None:
    for subject in (subjects.claim(key), subjects.frame(key), subjects.reply(key), subjects.cancel(key)):
        assert subjects.parse_key(subject) == key
    assert matches(subjects.tape_filter(key), subjects.claim(key))
    assert matches(subjects.tape_filter(key), subjects.frame(key))
    assert matches(subjects.REPLY_SOURCE, subjects.frame(key))
    assert not matches(subjects.REPLY_SOURCE, subjects.claim(key))
    assert matches(subjects.reply_filter(key.owner), subjects.reply(key))
    assert matches(subjects.cancel_filter(key.owner), subjects.cancel(key))


@pytest.mark.parametrize(
    "subject",
    ["inferflux.infer.m.default", "inferflux.infer.m.other.t", "x.infer.m.default.t", "inferflux.tape.m.default.t", ""],
)
def test_what_names_no_lane(subject: str) -> None:
    with pytest.raises(ValueError):
        subjects.parse_lane(subject)


@pytest.mark.parametrize("subject", ["inferflux.reply.o", "inferflux.infer.o.r.t", "inferflux.reply.o.=2f", ""])
def test_what_names_no_request(subject: str) -> None:
    with pytest.raises(ValueError):
        subjects.parse_key(subject)


def matches(pattern: str, subject: str) -> bool:
    """How NATS matches, for patterns without `>`."""
    wanted, found = pattern.split("."), subject.split(".")
    return len(wanted) == len(found) and all(a in ("*", b) for a, b in zip(wanted, found, strict=True))
