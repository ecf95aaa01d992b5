"""The answer: an engine's updates for one attempt, turned into sealed frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto

import msgspec

from inferflux.broker.errors import Code
from inferflux.broker.wire import Failure, Frame, Usage, encode, failure

from .engine.job import Job, Update
from .replay import Replay
from .seal import RequestSeal


class End(Enum):
    """How an answer came to its end."""

    FINISHED = auto()
    FAILED = auto()
    CANCELLED = auto()
    RELEASED = auto()


class Label(msgspec.Struct, frozen=True):
    """What the first frame of an attempt says about who answers."""

    model: str
    backend: str


class Choice:
    """What was sent of one choice. The first frame of an attempt says which hash it continues from."""

    def __init__(self, job: Job, finished: bool, seal: RequestSeal) -> None:
        self.job = job
        self.num_tokens = len(job.resumed)
        self.num_cached = 0
        self.finished = finished
        self._hash = seal.running_hash(job.choice)
        self._prev: str | None = self._hash.update(job.resumed)

    def advance(self, update: Update) -> tuple[str, str | None]:
        """The running hash after the update, and the one before it where this is the attempt's first frame."""
        prev, self._prev = self._prev, None
        self.num_tokens += len(update.tokens)
        self.num_cached = max(self.num_cached, update.num_cached)
        self.finished = update.finish_reason is not None
        return self._hash.update(update.tokens), prev


class Answer:
    """Frames leave through `send` as updates come in, except the last: it becomes the terminal frame."""

    def __init__(
        self,
        request: str,
        jobs: Sequence[Job],
        replay: Replay,
        seal: RequestSeal,
        label: Label,
        send: Callable[[bytes], None],
    ) -> None:
        self.attempt = 0
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.num_generated = 0
        self.error: Failure | None = None
        self._request = request
        self._seal = seal
        self._label: Label | None = label
        self._send = send
        self._last: Frame | None = None
        self._echo: Mapping[int, str] = {}
        self._choices = {job.choice: Choice(job, replay.choice(job.choice).finished, seal) for job in jobs}
        self.num_open = sum(not choice.finished for choice in self._choices.values())
        if not self.num_open:
            self.end(End.FINISHED)

    @property
    def open_jobs(self) -> list[Job]:
        """The choices that still have to run."""
        return [choice.job for choice in self._choices.values() if not choice.finished]

    @property
    def num_uncached(self) -> int:
        """Prompt tokens that had to be computed, as far as is known."""
        usage = self.usage
        return usage.prompt_tokens - usage.cached_tokens

    @property
    def usage(self) -> Usage:
        """A prompt counts once, however many samples were drawn from it."""
        firsts = {id(choice.job.prompt): choice for choice in reversed(self._choices.values())}.values()
        return Usage(
            prompt_tokens=sum(len(first.job.prompt) for first in firsts),
            completion_tokens=sum(choice.num_tokens for choice in self._choices.values()),
            cached_tokens=sum(first.num_cached for first in firsts),
        )

    def echo(self, texts: Mapping[int, str]) -> None:
        """Put each choice's prompt text in front of its first token."""
        self._echo = texts

    def end(self, how: End) -> None:
        """Ends once; later calls change nothing."""
        if not self.ended.done():
            self.ended.set_result(how)

    def on_update(self, update: Update) -> None:
        """Send one frame, or keep it when it is the last. Updates after the end are dropped."""
        if self.ended.done():
            return
        if update.error is not None:
            self.error = update.error
            self.end(End.FAILED)
            return
        choice = self._choices[update.choice]
        running_hash, prev = choice.advance(update)
        self.num_generated += len(update.tokens)
        label, self._label = self._label, None
        text = update.text
        if self._echo and update.index == 0:
            text = self._echo[update.choice] + text
        frame = Frame(
            id=self._request,
            attempt=self.attempt,
            choice=update.choice,
            index=update.index,
            num_tokens=len(update.tokens),
            text=text,
            finish_reason=update.finish_reason,
            logprobs=update.logprobs,
            embedding=update.embedding,
            hash=running_hash,
            prev=prev,
            sealed=self._sealed(update),
            model=label.model if label else None,
            backend=label.backend if label else None,
        )
        self.num_open -= choice.finished
        if self.num_open:
            self._send(encode(frame))
        else:
            self._last = frame
            self.end(End.FINISHED)

    def terminal(self, error: Failure | None = None) -> bytes:
        """The terminal frame: the last piece with the usage, or the error."""
        error = error or self.error
        if error is not None:
            return encode(Frame(id=self._request, attempt=self.attempt, error=error))
        if self._last is None:
            return encode(Frame(id=self._request, attempt=self.attempt, usage=self.usage))
        return encode(msgspec.structs.replace(self._last, usage=self.usage))

    def _sealed(self, update: Update) -> str | None:
        if not update.tokens:
            return None
        return self._seal.seal(update.tokens, attempt=self.attempt, choice=update.choice, index=update.index)


def cancelled(request: str, seq: int) -> bytes:
    """The terminal frame of a request that was cancelled by the claim at `seq`."""
    return encode(Frame(id=request, attempt=seq, error=failure(Code.CANCELLED, "the request was cancelled")))
