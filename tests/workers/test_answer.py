from __future__ import annotations

import time
from typing import Any

import pytest

from inferflux.broker.broker import Tape, TapeEntry
from inferflux.broker.errors import Code
from inferflux.broker.subjects import RequestKey
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.requests import Frame, TokenLogprob, decode_frame, failure
from inferflux.workers.answer import Answer, End, Label
from inferflux.workers.engine.job import Job, Update
from inferflux.workers.replay import EMPTY, Replay
from inferflux.workers.seal import Sealer

SEAL = Sealer(b"a secret of the workers").request(RequestKey("a-r", "r"), 1)
PROMPT = (1, 2, 3)


class Script:
    """An answer to jobs of one prompt, and the frames that it sent."""

    def __init__(self, num_choices: int = 1, tape: Tape = EMPTY, *, begun: bool = True) -> None:
        self.frames: list[Frame] = []
        replay = Replay(tape, SEAL)
        jobs = [
            Job(request="r", choice=number, prompt=PROMPT, max_tokens=9, resumed=replay.choice(number).tokens)
            for number in range(num_choices)
        ]
        self.answer = Answer("r", jobs, replay, SEAL, Label("m", "stub"), self._send)
        if begun:
            self.answer.begin(7)

    def _send(self, body: bytes) -> None:
        self.frames.append(decode_frame(body))

    def step(self, *tokens: int, choice: int = 0, index: int = 0, **rest: Any) -> None:
        text = "".join(f"<{token}>" for token in tokens)
        self.answer.push(Update(request="r", choice=choice, index=index, tokens=tokens, text=text, **rest))

    @property
    def terminal(self) -> Frame:
        return decode_frame(self.answer.terminal())


async def test_each_step_is_a_frame_and_the_last_is_the_terminal_one() -> None:
    script = Script()
    script.step(11)
    script.answer.flush()
    script.step(12, index=1, finish_reason="stop")
    script.answer.flush()
    assert await script.answer.ended is End.FINISHED
    (first,) = script.frames
    assert (first.index, first.num_tokens, first.text, first.model, first.backend) == (0, 1, "<11>", "m", "stub")
    assert not first.terminal
    last = script.terminal
    assert (last.index, last.text, last.finish_reason, last.model) == (1, "<12>", "stop", None)
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 2)


async def test_steps_that_piled_up_are_one_frame_with_its_pieces() -> None:
    script = Script()
    for index in range(3):
        logprob = TokenLogprob(token=str(index), logprob=-1.0)
        script.step(20 + index, index=index, logprobs=(logprob,))
    script.answer.flush()
    (frame,) = script.frames
    assert (frame.index, frame.num_tokens, frame.text) == (0, 3, "<20><21><22>")
    assert frame.pieces == ("<20>", "<21>", "<22>")
    assert [each.token for each in frame.logprobs or ()] == ["0", "1", "2"]
    assert SEAL.unseal(frame) == (20, 21, 22)


async def test_hashes_do_not_depend_on_the_grouping() -> None:
    one, other = Script(), Script()
    for index, token in enumerate((5, 6)):
        one.step(token, index=index)
        one.answer.flush()
        other.step(token, index=index)
    other.answer.flush()
    assert one.frames[-1].hash == other.frames[-1].hash
    assert one.frames[0].prev == other.frames[0].prev is not None
    assert one.frames[1].prev is None


async def test_a_continuation_starts_from_the_hash_and_the_token_where_the_tape_ends() -> None:
    before = Script()
    before.step(5)
    before.answer.flush()
    before.step(6, index=1)
    before.answer.flush()
    tape = Tape(None, 0, tuple(TapeEntry(seq, encode(frame)) for seq, frame in enumerate(before.frames)))
    after = Script(tape=tape)
    assert [job.resumed for job in after.answer.open_jobs] == [(5, 6)]
    after.step(7, index=2, finish_reason="length")
    after.answer.flush()
    assert after.terminal.prev == before.frames[-1].hash
    assert after.terminal.usage is not None
    assert after.terminal.usage.completion_tokens == 3
    assert after.answer.num_generated == 1


async def test_choices_that_the_tape_finished_do_not_run_again() -> None:
    before = Script(2)
    before.step(5, choice=0, finish_reason="stop")
    before.answer.flush()
    tape = Tape(None, 0, (TapeEntry(1, encode(before.frames[0])),))
    after = Script(2, tape)
    assert [job.choice for job in after.answer.open_jobs] == [1]
    after.step(6, choice=1, finish_reason="stop")
    after.answer.flush()
    assert await after.answer.ended is End.FINISHED
    assert after.terminal.usage is not None
    assert (after.terminal.usage.prompt_tokens, after.terminal.usage.completion_tokens) == (3, 2)


async def test_everything_on_the_tape_but_the_end_needs_only_the_end() -> None:
    sealed = SEAL.seal((6,), attempt=1, choice=0, index=0)
    digest = SEAL.running_hash(0).update([6])
    frame = Frame(id="r", attempt=1, num_tokens=1, finish_reason="stop", sealed=sealed, hash=digest)
    script = Script(tape=Tape(None, 0, (TapeEntry(1, encode(frame)),)))
    assert await script.answer.ended is End.FINISHED
    assert script.terminal.text == ""
    assert script.terminal.usage is not None
    assert script.terminal.usage.completion_tokens == 1


async def test_an_error_sends_what_came_before_it_and_ends() -> None:
    script = Script()
    script.step(5)
    error = failure(Code.ENGINE_ERROR, "it broke")
    script.answer.push(Update(request="r", choice=0, index=1, error=error))
    script.answer.flush()
    assert await script.answer.ended is End.FAILED
    assert [frame.text for frame in script.frames] == ["<5>"]
    assert script.terminal.error == error
    assert script.terminal.usage is None


@pytest.mark.parametrize("how", [End.CANCELLED, End.RELEASED])
async def test_nothing_leaves_after_the_end(how: End) -> None:
    script = Script()
    script.answer.end(how)
    script.step(5, finish_reason="stop")
    script.answer.flush()
    assert await script.answer.ended is how
    assert script.frames == []


async def test_frames_wait_for_the_claim() -> None:
    script = Script(begun=False)
    script.step(5)
    script.answer.flush()
    assert script.frames == []
    script.step(6, index=1)
    script.answer.begin(9)
    (frame,) = script.frames
    assert (frame.attempt, frame.text) == (9, "<5><6>")
    assert SEAL.unseal(frame) == (5, 6)


async def test_first_token_and_end_leave_at_once_and_the_rest_at_intervals() -> None:
    script = Script()
    script.step(11)
    assert script.answer.due_s(0.02) == 0.0
    before_s = time.monotonic()
    script.answer.flush()
    script.step(12, index=1)
    assert before_s + 0.02 <= script.answer.due_s(0.02) <= time.monotonic() + 0.02
    script.step(13, index=2, finish_reason="stop")
    assert script.answer.due_s(0.02) == 0.0
