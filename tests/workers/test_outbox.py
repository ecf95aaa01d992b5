import asyncio

import pytest

from inferflux.broker.errors import BrokerUnavailable, ClaimLost, MessageTooLarge, TapeFull
from inferflux.broker.subjects import RequestKey
from inferflux.config.settings import TapeSettings
from inferflux.workers.outbox import SWEEP_INTERVAL_S, Outbox

KEY = RequestKey("a-r", "r")


class ScriptedTape:
    """Takes frames; the test says which of them the tape acknowledges, and when."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, asyncio.Future[int]]] = []
        self.terminals: list[bytes] = []
        self.terminal_errors: list[Exception] = []
        self.max_payload = 100

    def send_frame(self, key: RequestKey, body: bytes) -> "asyncio.Future[int]":
        ack: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if len(body) > self.max_payload:
            ack.set_exception(MessageTooLarge("too large"))
            return ack
        self.sent.append((body, ack))
        return ack

    async def put_terminal(self, key: RequestKey, body: bytes, *, fence: int) -> int:
        if self.terminal_errors:
            raise self.terminal_errors.pop(0)
        self.terminals.append(body)
        return 99

    @property
    def bodies(self) -> list[bytes]:
        return [body for body, _ in self.sent]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def outbox(tape: ScriptedTape, clock: Clock, refused: list[MessageTooLarge] | None = None) -> Outbox:
    told = [] if refused is None else refused
    return Outbox(tape, KEY, TapeSettings(ack_timeout_s=1.0), clock, told.append)  # type: ignore[arg-type]


async def test_acknowledged_frames_are_forgotten() -> None:
    tape, clock = ScriptedTape(), Clock()
    box = outbox(tape, clock)
    for body in (b"0", b"1", b"2"):
        box.send(body)
    for _, ack in tape.sent[:2]:
        ack.set_result(1)
    box.sweep()
    assert box.num_unacked == 1
    assert tape.bodies == [b"0", b"1", b"2"]


async def test_a_failed_frame_is_sent_again_with_all_that_followed() -> None:
    tape, clock = ScriptedTape(), Clock()
    box = outbox(tape, clock)
    for body in (b"0", b"1", b"2"):
        box.send(body)
    tape.sent[0][1].set_result(1)
    tape.sent[1][1].set_exception(BrokerUnavailable("gone"))
    tape.sent[2][1].set_result(2)
    box.sweep()
    assert tape.bodies == [b"0", b"1", b"2", b"1", b"2"]


async def test_a_frame_without_an_answer_is_sent_again_after_the_timeout() -> None:
    tape, clock = ScriptedTape(), Clock()
    box = outbox(tape, clock)
    box.send(b"0")
    clock.now_s = 0.9
    box.sweep()
    assert tape.bodies == [b"0"]
    clock.now_s = 1.1
    box.sweep()
    assert tape.bodies == [b"0", b"0"]


async def test_the_terminal_frame_waits_for_every_frame_before_it() -> None:
    tape, clock = ScriptedTape(), Clock()
    box = outbox(tape, clock)
    box.send(b"0")
    finishing = asyncio.create_task(box.finish(b"end", fence=5))
    await asyncio.sleep(0)
    assert tape.terminals == []
    tape.sent[0][1].set_result(1)
    assert await finishing == 99
    assert tape.terminals == [b"end"]


async def test_trouble_is_waited_out_but_a_lost_claim_is_not() -> None:
    tape, clock = ScriptedTape(), Clock()
    box = outbox(tape, clock)
    tape.terminal_errors = [TapeFull("full"), BrokerUnavailable("away")]
    assert await box.finish(b"end", fence=5) == 99
    tape.terminal_errors = [ClaimLost("somebody else's")]
    with pytest.raises(ClaimLost):
        await box.finish(b"end", fence=5)
    assert tape.terminals == [b"end"]


async def test_drain_while_the_background_sweep_forgets_everything() -> None:
    tape, clock = ScriptedTape(), Clock()
    box = outbox(tape, clock)
    box.send(b"0")
    tape.sent[0][1].add_done_callback(lambda _: box.sweep())
    draining = asyncio.create_task(box.drain())
    await asyncio.sleep(0)
    tape.sent[0][1].set_result(1)
    await draining
    assert box.num_unacked == 0


async def test_what_the_server_will_never_take_is_told_once_and_not_sent_again() -> None:
    tape, clock = ScriptedTape(), Clock()
    refused: list[MessageTooLarge] = []
    box = outbox(tape, clock, refused)
    box.send(b"0")
    box.send(b"1" * 101)
    assert len(refused) == 1
    assert box.num_unacked == 1
    clock.now_s = 1.1
    box.sweep()
    assert tape.bodies == [b"0", b"0"]
    assert len(refused) == 1
    tape.terminal_errors = [MessageTooLarge("too large")]
    tape.sent[-1][1].set_result(1)
    with pytest.raises(MessageTooLarge):
        await box.finish(b"end", fence=5)


async def test_a_full_tape_is_not_asked_again_and_again() -> None:
    tape, clock = ScriptedTape(), Clock()
    box = outbox(tape, clock)
    box.send(b"0")
    draining = asyncio.create_task(box.drain())
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for number in range(3):
        while len(tape.sent) <= number:
            await asyncio.sleep(0.001)
        tape.sent[number][1].set_exception(TapeFull("full"))
    while len(tape.sent) <= 3:
        await asyncio.sleep(0.001)
    assert loop.time() - began_s >= 2 * SWEEP_INTERVAL_S
    tape.sent[3][1].set_result(1)
    await draining
