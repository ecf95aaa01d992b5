"""Whose a stored prompt is, read in the same way by workers and by those that end prompts for them."""

from __future__ import annotations

import pytest

from inferflux.broker.broker import StoredPrompt
from inferflux.broker.ownership import request_key
from inferflux.broker.stamp import Stamp, Stamper
from inferflux.broker.subjects import HEADER_MSG_ID, HEADER_STAMP, Lane, RequestKey, ServiceClass, infer

LANE = Lane("m", ServiceClass.DEFAULT, "acme")
STAMPER = Stamper(b"the secret of the stamps")
BODY = b'{"type":"completion","id":"r1","prompt":"x"}'


def key_of(body: bytes, headers: dict[str, str], lane: Lane = LANE) -> RequestKey:
    return request_key(StoredPrompt(7, lane, body, headers, 0.0), STAMPER)


def stamped(body: bytes, msg_id: str) -> dict[str, str]:
    stamp = STAMPER.write(Stamp("a-one", 0, 0), subject=infer(LANE), msg_id=msg_id, body=body)
    return {HEADER_STAMP: stamp, HEADER_MSG_ID: msg_id}


def test_a_genuine_stamp_names_the_owner() -> None:
    assert key_of(BODY, stamped(BODY, "r1")) == RequestKey("a-one", "r1")


def test_without_one_it_is_the_lanes_tenant() -> None:
    assert key_of(BODY, {}) == RequestKey("t-acme", "r1")
    other = Lane("m", ServiceClass.DEFAULT, "globex")
    assert key_of(BODY, stamped(BODY, "r1"), other) == RequestKey("t-globex", "r1")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"id": 7}', b'{"id": ""}', b'{"id": "%s"}' % (b"x" * 129), b"\xff"])
def test_an_unreadable_id_is_the_message_id_or_the_sequence(body: bytes) -> None:
    assert key_of(body, {HEADER_MSG_ID: "t-acme.m1"}) == RequestKey("t-acme", "m1")
    assert key_of(body, {}) == RequestKey("t-acme", "seq-7")
    assert key_of(body, stamped(body, "m1")) == RequestKey("a-one", "m1")


def test_the_id_of_a_prompt_with_other_faults_is_its_own() -> None:
    assert key_of(b'{"id": "r2", "temperature": -1}', {HEADER_MSG_ID: "t-acme.m1"}) == RequestKey("t-acme", "r2")
