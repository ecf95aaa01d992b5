"""One request's frames as its reader sees them: in order, each once, ending with the terminal frame."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

import msgspec

from inferflux.broker.broker import Broker, Reply, Tape
from inferflux.broker.errors import BrokerUnavailable, Code
from inferflux.broker.subjects import RequestKey
from inferflux.broker.wire.requests import Failure, Frame, decode_frame, ends, failure
from inferflux.config.logs import get_logger

from .transcript import Transcript, Verdict

log = get_logger("api.relay")

MAX_BUFFERED = 4096
FIRST_SILENCE_S = 2.0
MAX_SILENCE_S = 10.0


class TapeFrame(NamedTuple):
    """A frame and its sequence in the tape; 0 for one that this replica made up because the tape failed it."""

    seq: int
    frame: Frame


class ReplyStream:
    """Live replies, with the tape behind them wherever they have a gap, fall silent, or come faster than they are
    read: at most `MAX_BUFFERED` wait here, the rest is read from the tape.

    `seen_seq` is the last frame that its reader has had from elsewhere; without it on the tape the stream diverges.
    `prompt_seq` is set once the prompt is known to be stored; when prompt and terminal frame are both gone, no end can
    come any more.
    """

    def __init__(self, broker: Broker, key: RequestKey, seen_seq: int = 0) -> None:
        self.key = key
        self.last_seq = 0
        self.prompt_seq: int | None = None
        self.ended = False
        self.diverged = False
        self._broker = broker
        self._seen_seq = seen_seq
        self._arrived: deque[Reply] = deque()
        self._transcript = Transcript()
        self._waiter: asyncio.Future[None] | None = None
        self._wake_s = 0.0
        self._nudged = False
        self._behind = False
        self._doubtful = False
        self._held: TapeFrame | None = None
        self._active = True
        self._silence_s = FIRST_SILENCE_S
        self._reread_s = 0.0

    def push(self, reply: Reply) -> None:
        """Take in one live reply. Never blocks, never raises."""
        self._active = True
        if len(self._arrived) < MAX_BUFFERED:
            self._arrived.append(reply)
        else:
            self._behind = True
        self._wake()

    def nudge(self) -> None:
        """Make the reader's `read` return, with or without frames."""
        self._nudged = True
        self._wake()

    def reread(self) -> None:
        """Make the reader look into the tape, and whether there is an end to wait for."""
        self._doubtful = True
        self._look()

    def tick(self, now_s: float) -> None:
        """Called regularly: wakes a reader whose time has come, and looks into the tape after silence."""
        if self._active:
            self._active = False
            self._silence_s = FIRST_SILENCE_S
            self._reread_s = now_s + self._silence_s
        if self._waiter is None:
            return
        if now_s >= self._reread_s:
            self._silence_s = min(2 * self._silence_s, MAX_SILENCE_S)
            self._reread_s = now_s + self._silence_s
            self._look()
        if now_s >= self._wake_s:
            self.nudge()

    async def read(self, wake_s: float) -> list[TapeFrame]:
        """All frames there are, waiting for some; empty after a nudge, soon after `wake_s`, and after the end.

        A stream that cannot be continued ends with a terminal frame of our own, `stream_diverged`.
        """
        self._wake_s = wake_s
        while True:
            batch = self._take()
            if not batch and self._behind:
                batch = await self._read_tape()
            if batch or self.ended:
                return batch
            if self._nudged:
                self._nudged = False
                return []
            if not self._arrived:
                await self._wait()

    def _look(self) -> None:
        self._behind = True
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _take(self) -> list[TapeFrame]:
        batch: list[TapeFrame] = []
        arrived = self._arrived
        while arrived and not self.ended and not self._behind:
            reply = arrived[0]
            if reply.seq > self.last_seq:
                if reply.last_seq > self.last_seq:
                    self._behind = True
                    break
                self._add(batch, reply.seq, reply.body)
            arrived.popleft()
        return batch

    async def _read_tape(self) -> list[TapeFrame]:
        batch: list[TapeFrame] = []
        try:
            tape = await self._broker.read_tape(self.key, after_seq=0 if self._held else self.last_seq)
            forsaken = not tape.frames and await self._is_forsaken(tape)
            if forsaken:
                # The terminal frame is stored before the prompt goes.
                tape = await self._broker.read_tape(self.key, after_seq=self.last_seq)
        except BrokerUnavailable:
            await self._wait()
            return batch
        self._behind = self._doubtful = False
        held, self._held = self._held, None
        seen_seq, self._seen_seq = self._seen_seq, 0
        if seen_seq and all(entry.seq != seen_seq for entry in tape.frames):
            self._diverge(batch, "what you have read is not on the tape")
            return batch
        for entry in tape.frames:
            self._add(batch, entry.seq, entry.body)
        if self._held or (held and not self.ended):
            self._diverge(batch, "frames are missing from the tape")
        if forsaken and not tape.frames and not self.ended and not self._arrived:
            log.warning("stream lost", request=self.key.request, seq=self.last_seq)
            self._end(batch, 0, failure(Code.STREAM_DIVERGED, "the rest of the answer is no longer kept"))
        if self._arrived:
            # What came before the next reply has now been read, or is lost: the transcript tells.
            self.last_seq = max(self.last_seq, self._arrived[0].last_seq)
        return batch

    async def _is_forsaken(self, tape: Tape) -> bool:
        """Whether the prompt is gone. That of a request which nobody has begun is not looked for each time: patience
        ends it."""
        begun = self.last_seq > 0 or tape.claim is not None
        if self.prompt_seq is None or not (begun or self._doubtful):
            return False
        # Under a used id there may be a second prompt, which was dropped when it was pulled.
        claimed_seq = tape.claim.prompt if tape.claim is not None else 0
        return await self._broker.read_prompt(claimed_seq or self.prompt_seq) is None

    def _add(self, batch: list[TapeFrame], seq: int, body: bytes) -> None:
        if self.ended:
            return
        self.last_seq = max(self.last_seq, seq)
        try:
            frame = decode_frame(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("frame not understood", request=self.key.request, seq=seq, reason=str(error))
            if ends(body):
                self._end(batch, seq, failure(Code.INTERNAL_ERROR, "the end of the answer could not be read"))
            return
        if frame.usage is not None or frame.error is not None:
            self._add_terminal(batch, seq, frame)
            return
        verdict = self._transcript.judge(frame)
        if verdict is Verdict.NEW:
            batch.append(TapeFrame(seq, frame))
        elif verdict is Verdict.ENDING:
            batch.append(TapeFrame(seq, _without_tokens(frame)))
        elif verdict is Verdict.DIVERGED:
            self._diverge(batch, "a new attempt continues from other tokens")
        # Tokens before a HOLE were never stored; their worker sends them again, and this frame after them.

    def _add_terminal(self, batch: list[TapeFrame], seq: int, frame: Frame) -> None:
        verdict = Verdict.NEW
        if frame.num_tokens or frame.text or frame.finish_reason or frame.embedding is not None:
            verdict = self._transcript.judge(frame)
        match verdict:
            case Verdict.HOLE:
                self._held = TapeFrame(seq, frame)
                self._behind = True
                return
            case Verdict.DIVERGED:
                self._diverge(batch, "a new attempt continues from other tokens")
                return
            case Verdict.ENDING:
                frame = _without_tokens(frame)
            case Verdict.OLD:
                frame = msgspec.structs.replace(_without_tokens(frame), finish_reason=None, embedding=None)
        self.ended = True
        batch.append(TapeFrame(seq, frame))

    def _diverge(self, batch: list[TapeFrame], why: str) -> None:
        log.warning("stream diverged", request=self.key.request, seq=self.last_seq, reason=why)
        self.diverged = True
        self._end(batch, 0, failure(Code.STREAM_DIVERGED, f"the stream could not be continued after a failure: {why}"))

    def _end(self, batch: list[TapeFrame], seq: int, error: Failure) -> None:
        self.ended = True
        batch.append(TapeFrame(seq, Frame(id=self.key.request, attempt=0, error=error)))


def _without_tokens(frame: Frame) -> Frame:
    return msgspec.structs.replace(frame, text="", pieces=None, num_tokens=0, logprobs=None)
