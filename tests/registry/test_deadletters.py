"""Dead letters: what is kept of a request that was given up."""

from __future__ import annotations

import time

import msgspec
import pytest

from inferflux.broker.errors import Code
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import BUCKET_DEADLETTERS, HEADER_STAMP, Lane, RequestKey, ServiceClass, parse_key_id
from inferflux.broker.wire.requests import Claim, LostAttempt, failure
from inferflux.registry.deadletters import DeadLetters

KEY = RequestKey("t-acme", "job 7")
LANE = Lane("org/model:v1.5", ServiceClass.BATCH, "acme")
REASON = failure(Code.ATTEMPTS_EXHAUSTED, "given up")
BODY = b'{"type":"completion",\n"id":"job 7","prompt":"\xff"}'


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(MemoryHub())


async def bury(broker: MemoryBroker, key: RequestKey = KEY, lost: tuple[Claim, ...] = ()) -> None:
    headers = {HEADER_STAMP: "1;secret", "traceparent": "00-1"}
    await DeadLetters(broker).bury(key, LANE, headers, BODY, reason=REASON, lost=lost)


async def test_keeps_the_message_and_who_was_lost(broker: MemoryBroker) -> None:
    states = ("running", "released", "running", "running")
    claims = (Claim(worker=f"w{number}", state=state, at=float(number)) for number, state in enumerate(states))

    await bury(broker, lost=tuple(claims))

    (letter,) = await DeadLetters(broker).all()
    assert parse_key_id(letter.id) == KEY
    assert letter.body == BODY
    about = letter.about
    assert (about.owner, about.request) == (KEY.owner, KEY.request)
    assert (about.model, about.service_class, about.tenant) == (LANE.model, "batch", "acme")
    assert about.reason == REASON
    assert abs(about.at - time.time()) < 60
    assert about.headers == {"traceparent": "00-1"}
    assert about.attempts == tuple(
        LostAttempt(worker=f"w{number}", at=float(number), state=state) for number, state in enumerate(states)
    )


async def test_burying_again_replaces_the_letter(broker: MemoryBroker) -> None:
    await bury(broker)
    await bury(broker)
    await bury(broker, RequestKey("t-globex", KEY.request))

    assert len(await DeadLetters(broker).all()) == 2


async def test_oldest_first_and_dropped_once(broker: MemoryBroker) -> None:
    letters = DeadLetters(broker)
    for number in range(3):
        await bury(broker, RequestKey("t-acme", f"r{number}"))

    assert await letters.ids() == ["t-acme.r0", "t-acme.r1", "t-acme.r2"]
    assert await letters.drop("t-acme.r1")
    assert not await letters.drop("t-acme.r1")
    assert [letter.id for letter in await letters.all()] == ["t-acme.r0", "t-acme.r2"]
    assert await letters.get("t-acme.r1") is None


async def test_what_is_no_letter_is_passed_over(broker: MemoryBroker) -> None:
    bucket = await broker.bucket(BUCKET_DEADLETTERS)
    await bucket.put("t-acme.x", b"{}")
    await bucket.put("t-acme.y", msgspec.json.encode({"owner": 1}) + b"\nbody")

    assert await DeadLetters(broker).all() == []
