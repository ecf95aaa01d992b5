"""The screen: holds tokens back while their text may still become something that must not leave.

Tokens leave whole: with their text decided, and what there is to know of them (ids, log probabilities) with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from inferflux.broker.wire.requests import TokenLogprob
from inferflux.registry.guardrails.matcher import Decided, Matcher, Scanner
from inferflux.registry.guardrails.rule import Rule

from .engine.job import Job, Update

UNKNOWN_LOGPROB = -9999.0
"""What OpenAI's API says of a token that it tells nothing about."""


class Held:
    """An update that waits: where its text begins and ends in the choice's, and what of it may be shown."""

    __slots__ = ("end", "hidden", "shown", "start", "update")

    def __init__(self, update: Update, start: int) -> None:
        self.update = update
        self.start = start
        self.end = start + len(update.text)
        self.shown = ""
        self.hidden = False


class Screen:
    """One choice's. `on_hit` is told every rule that was found; once one has blocked, `cut` says so.

    The engine's text may lag behind its tokens (stop strings, split characters) by `lag` characters at most: where log
    probabilities tell a token's text, a token waits for that much text after it, too.
    """

    def __init__(self, job: Job, matcher: Matcher, before: str, on_hit: Callable[[Rule], None]) -> None:
        self.matcher = matcher
        self.cut: Rule | None = None
        self._scanner = Scanner(matcher, before)
        self._on_hit = on_hit
        self._held: deque[Held] = deque()
        self._lag = 0 if job.sampling.num_logprobs is None else max(map(len, job.stop), default=1)
        self._num_came = 0
        self._num_decided = 0

    def push(self, update: Update) -> Iterator[Update]:
        """What may leave now that this has come; nothing may be pushed after the cut."""
        self._held.append(Held(update, self._num_came))
        self._num_came += len(update.text)
        decided = self._scanner.push(update.text)
        final = update.finish_reason is not None
        if final:
            decided += self._scanner.finish()
        for piece in decided:
            if piece.rule is not None:
                self._on_hit(piece.rule)
                if piece.rule.action == "block":
                    yield from self._cut(piece.rule)
                    return
            self._decide(piece)
        while self._held and (final or self._held[0].end + self._lag <= self._num_decided):
            yield self._released(self._held.popleft())

    def rest(self) -> list[Update]:
        """What has not left, as it came."""
        return [held.update for held in self._held]

    def _decide(self, piece: Decided) -> None:
        start, end = self._num_decided, self._num_decided + piece.length
        self._num_decided = end
        marker = piece.rule.marker if piece.rule is not None and piece.length else ""
        for held in self._held:
            first, last = max(start, held.start), min(end, held.end)
            if first < last and piece.rule is None:
                held.shown += held.update.text[first - held.start : last - held.start]
            elif first < last:
                held.shown, marker = held.shown + marker, ""
            if piece.rule is not None and held.start < end and held.end + self._lag > start:
                held.hidden = True

    def _cut(self, rule: Rule) -> Iterator[Update]:
        """End the choice before the match: its tokens never leave, only the text in front of it."""
        self.cut = rule
        while self._held and self._held[0].end + self._lag <= self._num_decided and self._held[0].update.text:
            yield self._released(self._held.popleft())
        first = self._held[0].update
        yield Update(
            request=first.request,
            choice=first.choice,
            index=first.index,
            text="".join(held.shown for held in self._held),
            finish_reason="content_filter",
            num_cached=first.num_cached,
        )

    def _released(self, held: Held) -> Update:
        update, logprobs = held.update, held.update.logprobs
        if logprobs is not None:
            logprobs = tuple(map(_unknown if held.hidden else self._without_matches, logprobs))
        elif held.shown == update.text:
            return update
        return msgspec.structs.replace(update, text=held.shown, logprobs=logprobs)

    def _without_matches(self, logprob: TokenLogprob) -> TokenLogprob:
        """Alternatives were not generated, but they are told."""
        if not logprob.top:
            return logprob
        return msgspec.structs.replace(logprob, top=tuple(each for each in logprob.top if not self._stops(each.token)))

    def _stops(self, text: str) -> bool:
        return any(hit.rule.action != "flag" for hit in self.matcher.find(text))


def _unknown(_: TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token="", logprob=UNKNOWN_LOGPROB)


def rescreened(screen: Screen | None, updates: Sequence[Update]) -> Iterator[Update]:
    """Updates that another screen, or none, let through."""
    if screen is None:
        yield from updates
        return
    for update in updates:
        if screen.cut is None:
            yield from screen.push(update)
