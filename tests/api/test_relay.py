from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from inferflux.api import replies
from inferflux.api.relay import Relay
from inferflux.api.replies import ReplyStream
from inferflux.broker.broker import Reply
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.requests import Claim, Frame, Usage

KEY = RequestKey("a-replica", "r1")


def frame(index: int, *, attempt: int = 1, **fields: Any) -> bytes:
    defaults = {"num_tokens": 1, "text": f"t{index}", "hash": f"h{index + 1}"}
    return encode(Frame(id="r1", attempt=attempt, index=index, **(defaults | fields)))


def last(index: int, **fields: Any) -> bytes:
    return frame(index, finish_reason="stop", usage=Usage(completion_tokens=index + 1), **fields)


class Scene:
    """A relay, a stream of one request, and the tape behind them. `lose` keeps replies from arriving."""

    def __init__(self) -> None:
        self.hub = MemoryHub()
        self.broker = MemoryBroker(self.hub)
        self.relay = Relay(self.broker, KEY.owner)
        self.stream = self.relay.open(KEY)
        self.lose = False

    async def start(self) -> None:
        deliver = self.relay._on_reply
        self.relay._on_reply = lambda reply: None if self.lose else deliver(reply)  # type: ignore[method-assign]
        await self.relay.start()

    async def put(self, *bodies: bytes, lose: bool = False) -> None:
        """Store frames; what is lost is on the tape alone."""
        self.lose = lose
        for body in bodies:
            await self.broker.send_frame(KEY, body)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.lose = False

    async def read_all(self) -> list[Frame]:
        """Everything up to the terminal frame."""
        frames: list[Frame] = []
        async with asyncio.timeout(20):
            while not self.stream.ended:
                frames += [each.frame for each in await self.stream.read(time.monotonic() + 60)]
        return frames

    async def texts(self) -> list[str]:
        return [each.text for each in await self.read_all()]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    await scene.start()
    yield scene
    await scene.relay.close()


async def test_frames_that_wait_come_as_one_batch_in_order(scene: Scene) -> None:
    await scene.put(*(frame(index) for index in range(5)))

    batch = await scene.stream.read(time.monotonic() + 60)

    assert [each.frame.text for each in batch] == ["t0", "t1", "t2", "t3", "t4"]
    assert [each.seq for each in batch] == [1, 2, 3, 4, 5]


async def test_terminal_frame_ends_the_stream_once(scene: Scene) -> None:
    await scene.put(frame(0), last(1), last(1))

    assert await scene.texts() == ["t0", "t1"]
    assert scene.stream.ended
    assert await scene.stream.read(time.monotonic() + 60) == []


async def test_gap_is_read_from_the_tape(scene: Scene) -> None:
    await scene.put(frame(0))
    await scene.put(frame(1), frame(2), lose=True)
    await scene.put(frame(3), last(4))

    assert await scene.texts() == ["t0", "t1", "t2", "t3", "t4"]


async def test_lost_first_frame_is_read_from_the_tape(scene: Scene) -> None:
    await scene.put(frame(0), lose=True)
    await scene.put(last(1))

    assert await scene.texts() == ["t0", "t1"]


async def test_frames_sent_again_pass_once(scene: Scene) -> None:
    await scene.put(frame(0), frame(2), frame(1), frame(2), frame(1), last(3))

    assert await scene.texts() == ["t0", "t1", "t2", "t3"]


async def test_silence_leads_to_the_tape(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "FIRST_SILENCE_S", 0.05)
    await scene.put(frame(0), last(1), lose=True)

    assert await scene.texts() == ["t0", "t1"]


async def test_reconnecting_leads_to_the_tape(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "FIRST_SILENCE_S", 60.0)
    reading = asyncio.create_task(scene.texts())
    await scene.put(frame(0), last(1), lose=True)
    scene.hub.online = False
    await asyncio.sleep(0.25)
    assert not reading.done()
    scene.hub.online = True

    async with asyncio.timeout(20):
        assert await reading == ["t0", "t1"]


async def test_outage_while_reading_the_tape_is_waited_out(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "FIRST_SILENCE_S", 0.05)
    await scene.put(frame(0), last(1), lose=True)
    scene.hub.online = False
    reading = asyncio.create_task(scene.texts())
    scene.stream.reread()
    await asyncio.sleep(0.2)
    assert not reading.done()
    scene.hub.online = True

    assert await reading == ["t0", "t1"]


async def test_new_attempt_goes_on_where_the_old_one_was_lost(scene: Scene) -> None:
    await scene.put(frame(0), frame(1), frame(2, attempt=9, prev="h2"), frame(2, hash="zombie"), last(3, attempt=9))

    frames = await scene.read_all()

    assert [each.text for each in frames] == ["t0", "t1", "t2", "t3"]
    assert frames[2].hash == "h3"


async def test_new_attempt_with_other_tokens_ends_the_stream(scene: Scene) -> None:
    await scene.put(frame(0), frame(1), frame(2, attempt=9, prev="other"), last(3, attempt=9))

    *_, end = await scene.read_all()

    assert end.error is not None
    assert end.error.code == "stream_diverged"
    assert scene.stream.diverged


async def test_tokens_missing_at_the_end_are_looked_for_and_then_an_error(scene: Scene) -> None:
    await scene.put(frame(0), last(2))

    *_, end = await scene.read_all()

    assert end.error is not None
    assert end.error.code == "stream_diverged"


async def test_new_attempt_that_repeats_the_end_is_read_once(scene: Scene) -> None:
    said = frame(1, num_tokens=2, text="t1t2", pieces=("t1", "t2"), hash="h3")
    again = last(1, attempt=9, prev="h1", num_tokens=2, text="t1t2", pieces=("t1", "t2"), hash="h3")
    await scene.put(frame(0), said, again)

    *_, before, end = await scene.read_all()

    assert before.pieces == ("t1", "t2")
    assert (end.text, end.pieces, end.num_tokens, end.finish_reason) == ("", None, 0, "stop")
    assert end.usage is not None


async def test_new_attempt_that_repeats_an_end_that_was_read_says_it_once(scene: Scene) -> None:
    await scene.put(frame(0), frame(1, finish_reason="stop"), last(1, attempt=9, prev="h1", pieces=("t1",)))

    *_, end = await scene.read_all()

    assert (end.text, end.pieces, end.finish_reason) == ("", None, None)


async def test_one_of_several_choices_ends_in_a_repetition(scene: Scene) -> None:
    other = last(0, choice=1, attempt=9)
    await scene.put(frame(0), frame(0, attempt=9), frame(0, attempt=9, finish_reason="length"), other)

    frames = await scene.read_all()

    assert [(each.choice, each.text, each.finish_reason) for each in frames] == [
        (0, "t0", None),
        (0, "", "length"),
        (1, "t0", "stop"),
    ]


async def test_stream_whose_tape_was_purged_while_it_could_not_be_read_ends(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "FIRST_SILENCE_S", 0.05)
    lane = Lane("m", ServiceClass.DEFAULT, "t")
    scene.stream.prompt_seq = (await scene.broker.publish_prompt(lane, b"{}", msg_id="r1")).seq
    await scene.put(frame(0))
    reading = asyncio.create_task(scene.read_all())
    await scene.put(last(1), lose=True)
    await scene.broker.purge_tape(KEY)
    await asyncio.sleep(0.3)
    assert not reading.done()
    await scene.broker.drop_prompt(scene.stream.prompt_seq)

    *_, end = await reading

    assert end.error is not None
    assert end.error.code == "stream_diverged"
    assert not scene.stream.diverged


async def test_claimed_request_without_prompt_and_without_end_ends(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "FIRST_SILENCE_S", 0.05)
    scene.stream.prompt_seq = 7
    await scene.broker.put_claim(KEY, Claim(worker="w", prompt=7), expected_seq=0)

    [end] = await scene.read_all()

    assert end.error is not None


async def test_unread_request_that_was_purged_during_an_outage_ends(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "FIRST_SILENCE_S", 60.0)
    scene.stream.prompt_seq = 7
    reading = asyncio.create_task(scene.read_all())
    scene.hub.online = False
    await asyncio.sleep(0.25)
    scene.hub.online = True

    async with asyncio.timeout(20):
        [end] = await reading
    assert end.error is not None


async def test_end_that_cannot_be_understood_is_an_error(scene: Scene) -> None:
    body = msgspec.json.encode({"id": "r1", "attempt": 1, "embedding": [float("nan")], "usage": {"prompt_tokens": 2}})
    await scene.put(body)

    [end] = await scene.read_all()

    assert end.error is not None
    assert end.error.code == "internal_error"


async def test_slow_reader_keeps_little_and_loses_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "MAX_BUFFERED", 10)
    await scene.put(*(frame(index) for index in range(100)), last(100))

    assert len(scene.stream._arrived) == 10
    assert await scene.texts() == [f"t{index}" for index in range(101)]


async def test_frame_that_is_none_is_skipped(scene: Scene) -> None:
    await scene.put(frame(0), b"garbage", last(1))

    assert await scene.texts() == ["t0", "t1"]


async def test_read_returns_when_its_time_has_come(scene: Scene) -> None:
    async with asyncio.timeout(20):
        assert await scene.stream.read(time.monotonic() + 0.05) == []


async def test_nudge_returns_at_once(scene: Scene) -> None:
    reading = asyncio.create_task(scene.stream.read(time.monotonic() + 60))
    await asyncio.sleep(0)
    scene.stream.nudge()

    async with asyncio.timeout(30):
        assert await reading == []


async def test_frames_of_others_and_of_the_forgotten_are_dropped(scene: Scene) -> None:
    other = scene.relay.open(RequestKey(KEY.owner, "r2"))
    await scene.put(frame(0))
    scene.relay.forget(scene.stream)
    await scene.put(last(1))

    assert await other.read(time.monotonic() + 0.05) == []
    assert len(await scene.stream.read(time.monotonic())) == 1
    assert scene.relay.num_streams == 1


def test_tape_lost_with_its_claim_is_survived() -> None:
    """After a lost tape sequences start over; the reader then goes by tokens, not by sequences."""

    async def run() -> list[str]:
        hub = MemoryHub()
        broker = MemoryBroker(hub)
        stream = ReplyStream(broker, KEY)
        await broker.put_claim(KEY, Claim(worker="w"), expected_seq=0)
        stream.push(Reply(KEY, 50, 0, frame(0)))
        first = await stream.read(time.monotonic())
        stream.push(Reply(KEY, 60, 55, last(1)))
        second = await stream.read(time.monotonic() + 60)
        return [each.frame.text for each in (*first, *second)]

    assert asyncio.run(run()) == ["t0", "t1"]
