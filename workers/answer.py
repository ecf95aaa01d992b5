"""The answer: an engine's updates for one attempt, turned into sealed frames."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto

import msgspec

from inferflux.broker.errors import Code
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.requests import Failure, Frame, Usage, failure
from inferflux.registry.guardrails.guard import Guard
from inferflux.registry.guardrails.matcher import Matcher
from inferflux.registry.guardrails.rule import Rule

from .engine.job import Job, Update
from .replay import Replay, ReplayedChoice
from .screen import Screen, rescreened
from .seal import RequestSeal


class End(Enum):
    """How an answer came to its end."""

    FINISHED = auto()
    FAILED = auto()
    CANCELLED = auto()
    RELEASED = auto()


def _nobody(_: int) -> None:
    """Runs nothing that could be stopped."""


class Label(msgspec.Struct, frozen=True):
    """What the first frame of an attempt says about who answers."""

    model: str
    backend: str


class Choice:
    """What was sent of one choice, and what may be sent of what came since. The first frame of an attempt says which
    hash it continues."""

    def __init__(self, job: Job, replayed: ReplayedChoice, seal: RequestSeal) -> None:
        self.job = job
        self.num_tokens = len(job.resumed)
        self.num_cached = 0
        self.finished = replayed.finished
        self.updates: list[Update] = []
        self.screen: Screen | None = None
        self._tail = replayed.tail
        self._hash = seal.running_hash(job.choice)
        self._prev: str | None = self._hash.update(job.resumed)

    def push(self, update: Update) -> None:
        self.num_tokens += len(update.tokens)
        self.num_cached = max(self.num_cached, update.num_cached)
        if self.screen is None:
            self._let(update)
        else:
            for each in self.screen.push(update):
                self._let(each)

    def screen_by(self, matcher: Matcher | None, on_hit: Callable[[Rule], None]) -> None:
        """Read what has not left by another policy from now on."""
        held = [] if self.screen is None else self.screen.rest()
        self.screen = None if matcher is None else Screen(self.job, matcher, self._tail, on_hit)
        for update in rescreened(self.screen, held):
            self._let(update)

    def _let(self, update: Update) -> None:
        self.updates.append(update)
        self._tail = update.text or self._tail
        self.finished = update.finish_reason is not None

    def take(self) -> Update:
        """All that came since the last frame, as one update."""
        updates, self.updates = self.updates, []
        if len(updates) == 1:
            return updates[0]
        logprobs = [update.logprobs for update in updates if update.logprobs is not None]
        return msgspec.structs.replace(
            updates[-1],
            index=updates[0].index,
            tokens=tuple(token for update in updates for token in update.tokens),
            text="".join(update.text for update in updates),
            logprobs=tuple(each for group in logprobs for each in group) if logprobs else None,
        )

    def advance(self, tokens: Sequence[int]) -> tuple[str, str | None]:
        """The running hash after these tokens, and the one before them where this is the attempt's first frame."""
        prev, self._prev = self._prev, None
        return self._hash.update(tokens), prev


class Answer:
    """Collects updates, and sends what has come of each choice as one frame: tokens that came together, because the
    loop was busy, travel together. The last frame is kept: it becomes the terminal frame."""

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
        self.first_token_s: float | None = None
        self.error: Failure | None = None
        self._request = request
        self._seal = seal
        self._label: Label | None = label
        self._send = send
        self._last: Frame | None = None
        self._broken: Failure | None = None
        self._echo: Mapping[int, str] = {}
        self._sent_s = 0.0
        self._is_urgent = True
        self.blocked: list[Rule] = []
        self.on_cut: Callable[[int], None] = _nobody
        self._guard: Guard | None = None
        self._matcher: Matcher | None = None
        self._choices = {job.choice: Choice(job, replay.choice(job.choice), seal) for job in jobs}
        self.num_open = sum(not choice.finished for choice in self._choices.values())

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

    def screen_by(self, guard: Guard) -> None:
        """Read all that comes by the guardrails in force at the time. `blocked` are those that ended a choice;
        `on_cut` is told the choice, which the engine may stop."""
        self._guard = guard

    def end(self, how: End) -> None:
        """Ends once; later calls change nothing."""
        if not self.ended.done():
            self.ended.set_result(how)

    def fail(self, error: Failure) -> None:
        """End with an error instead of an answer."""
        self.error = error
        self.end(End.FAILED)

    def begin(self, attempt: int) -> None:
        """The claim is ours: from now on frames may leave."""
        self.attempt = attempt
        self.flush()
        if not self.num_open:
            self.end(End.FINISHED)

    def push(self, update: Update) -> None:
        """Take an update; `flush` sends it. Updates after the end are dropped."""
        if self.ended.done() or self._broken:
            return
        if update.error is not None:
            self._broken = update.error
            self._is_urgent = True
            return
        choice = self._choices[update.choice]
        if choice.finished:
            return
        if self._guard is not None and self._guard.output is not self._matcher:
            self._rescreen(self._guard)
        choice.push(update)
        if choice.screen is not None and choice.screen.cut is not None:
            self.blocked.append(choice.screen.cut)
            self.on_cut(update.choice)
        self._is_urgent |= choice.finished
        self.num_generated += len(update.tokens)
        if self.first_token_s is None:
            self.first_token_s = time.monotonic()

    def due_s(self, interval_s: float) -> float:
        """When what has come should leave, on the monotonic clock: the first token and every end at once, the rest
        `interval_s` after the frame before it."""
        return 0.0 if self._is_urgent else self._sent_s + interval_s

    def flush(self) -> None:
        """Send one frame for each choice that something came for, once the answer has begun."""
        if self.ended.done() or not self.attempt:
            return
        for choice in self._choices.values():
            if not choice.updates:
                continue
            self._sent_s, self._is_urgent = time.monotonic(), False
            frame = self._frame(choice)
            self.num_open -= choice.finished
            if self.num_open:
                self._send(encode(frame))
            else:
                self._last = frame
                self.end(End.FINISHED)
        if self._broken is not None:
            self.fail(self._broken)

    def _rescreen(self, guard: Guard) -> None:
        self._matcher = guard.output
        for choice in self._choices.values():
            if not choice.finished:
                choice.screen_by(self._matcher, lambda rule: guard.on_hit("output", rule.guardrail, rule.action))

    def _frame(self, choice: Choice) -> Frame:
        updates = choice.updates
        pieces = tuple(update.text for update in updates)
        update = choice.take()
        running_hash, prev = choice.advance(update.tokens)
        label, self._label = self._label, None
        echo = self._echo.get(update.choice, "") if update.index == 0 else ""
        return Frame(
            id=self._request,
            attempt=self.attempt,
            choice=update.choice,
            index=update.index,
            num_tokens=len(update.tokens),
            text=echo + update.text,
            pieces=(echo + pieces[0], *pieces[1:]) if len(pieces) > 1 else None,
            finish_reason=update.finish_reason,
            logprobs=update.logprobs,
            embedding=update.embedding,
            hash=running_hash,
            prev=prev,
            sealed=self._sealed(update),
            model=label.model if label else None,
            backend=label.backend if label else None,
        )

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
