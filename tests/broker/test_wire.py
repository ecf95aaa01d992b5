"""Wire messages survive the trip, and newer ones do not break older readers."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferflux.broker.errors import HTTP_ERRORS, Code
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.policies import Fairness
from inferflux.broker.wire.requests import (
    AnyPrompt,
    ChatPrompt,
    Claim,
    CompletionPrompt,
    EmbeddingPrompt,
    Failure,
    Frame,
    Message,
    TokenLogprob,
    Usage,
    decode_claim,
    decode_frame,
    decode_prompt,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
FLOATS = st.floats(-100, 100, allow_nan=False)
TOKENS = st.lists(st.integers(0, 10**6), max_size=5).map(tuple)
IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
GENERATION: dict[str, st.SearchStrategy[Any]] = {
    "id": IDS,
    "created": FLOATS,
    "deadline": st.none() | FLOATS,
    "max_tokens": st.none() | st.integers(1, 10**6),
    "temperature": st.floats(0, 2),
    "stop": st.lists(IDS, max_size=3).map(tuple),
    "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
    "n": st.integers(1, 8),
    "logit_bias": st.dictionaries(st.integers(0, 9999).map(str), FLOATS, max_size=3),
    "logprobs": st.none() | st.integers(0, 20),
}
PROMPTS = st.one_of(
    st.builds(
        CompletionPrompt,
        prompt=TEXT | st.lists(TEXT, max_size=3).map(tuple) | TOKENS | st.lists(TOKENS, max_size=2).map(tuple),
        echo=st.booleans(),
        **GENERATION,
    ),
    st.builds(
        ChatPrompt,
        messages=st.lists(st.builds(Message, role=TEXT, content=TEXT, name=st.none() | TEXT), max_size=3).map(tuple),
        **GENERATION,
    ),
    st.builds(EmbeddingPrompt, id=IDS, input=TEXT | TOKENS),
)
LOGPROBS = st.builds(TokenLogprob, token=TEXT, logprob=FLOATS, bytes=st.binary(max_size=4).map(tuple))
FRAMES = st.builds(
    Frame,
    id=TEXT,
    attempt=st.integers(0, 2**53),
    choice=st.integers(0, 100),
    index=st.integers(0, 10**6),
    num_tokens=st.integers(0, 100),
    text=TEXT,
    finish_reason=st.none() | st.sampled_from(["stop", "length", "content_filter"]),
    logprobs=st.none() | st.lists(LOGPROBS, max_size=3).map(tuple),
    embedding=st.none() | st.lists(FLOATS, max_size=4).map(tuple),
    usage=st.none() | st.builds(Usage, prompt_tokens=st.integers(0, 999)),
    error=st.none() | st.builds(Failure, code=TEXT, message=TEXT, retry_after_s=st.none() | FLOATS),
)


@given(PROMPTS)
def test_prompt_comes_back(prompt: AnyPrompt) -> None:
    assert decode_prompt(encode(prompt)) == prompt


@given(FRAMES)
def test_frame_comes_back(frame: Frame) -> None:
    assert decode_frame(encode(frame)) == frame
    assert frame.terminal == (frame.usage is not None or frame.error is not None)


@given(PROMPTS)
def test_unknown_fields_are_ignored(prompt: AnyPrompt) -> None:
    newer = json.loads(encode(prompt)) | {"of_a_later_version": [1, {"x": None}]}
    assert decode_prompt(json.dumps(newer).encode()) == prompt


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"type": "completion", "id": "r"}', "prompt"),
        (b'{"type": "completion", "prompt": "x"}', "id"),
        (b'{"type": "completion", "id": "r", "prompt": "x", "max_tokens": "7"}', "max_tokens"),
        (b'{"type": "chat", "id": "r", "messages": [{"content": "x"}]}', r"messages\[0\]"),
        (b'{"type": "song", "id": "r"}', "song"),
        (b'{"type": "completion", "id": "r", "prompt": "x", "top_k": 4294967297}', "top_k"),
        (b'{"type": "completion", "id": "r", "prompt": "x", "logit_bias": {"' + b"1" * 5000 + b'": 1}}', "logit_bias"),
        (b"[]", "object"),
    ],
)
def test_bad_prompt_names_the_field(body: bytes, names: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=names):
        decode_prompt(body)


@pytest.mark.parametrize("body", [b"", b"{", b'{"type": "completion", "id": "\xff"}', b"not json"])
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        decode_prompt(body)


def test_defaults_are_not_sent() -> None:
    assert encode(CompletionPrompt(id="r", prompt="x")) == b'{"type":"completion","id":"r","prompt":"x"}'
    assert encode(Claim(worker="w")) == b'{"worker":"w"}'


def test_not_a_number_does_not_leave() -> None:
    assert decode_frame(encode(Frame(id="r", attempt=1, embedding=(0.1 + 0.2,)))).embedding == (0.1 + 0.2,)
    with pytest.raises(msgspec.ValidationError):
        decode_frame(encode(Frame(id="r", attempt=1, embedding=(math.nan,))))


@pytest.mark.parametrize("body", [b"", b"\xff", b'{"stream":"PROMPTS","seq":4}', b'{"worker":"w","state":"new"}'])
def test_what_is_no_claim_is_that_of_a_worker_that_is_gone(body: bytes) -> None:
    claim = decode_claim(body)
    assert (claim.worker, claim.state, claim.prompt, claim.num_attempts) == ("", "running", 0, 0)


def test_an_acknowledgement_is_no_fairness() -> None:
    with pytest.raises(msgspec.ValidationError, match="stream"):
        msgspec.json.decode(b'{"stream":"PROMPTS","seq":4}', type=Fairness)


def test_every_code_has_an_http_error() -> None:
    assert set(HTTP_ERRORS) == set(Code)
