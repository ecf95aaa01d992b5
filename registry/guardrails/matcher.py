"""The matcher: finds what rules speak of in a whole text, or in one that comes in pieces, with the same result.

Texts are read from left to right. At each place the strongest rule counts, then the longest match. What is blocked or
redacted is consumed; what is only flagged is not.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from .folding import Folded
from .rule import MORE, Finder, Found, Rule, strongest


class Hit(NamedTuple):
    """A match in the text as it was given."""

    rule: Rule
    start: int
    end: int


class Matcher:
    """Several finders at once."""

    def __init__(self, finders: Sequence[Finder]) -> None:
        self._finders = tuple(finders)

    def find(self, text: str) -> list[Hit]:
        """Every match in a complete text, in order."""
        folded = Folded(text)
        hits: list[Hit] = []
        free = 0
        for start in _merged(finder.starts(folded.text) for finder in self._finders):
            if start < free:
                continue
            found = self.probe(folded.text, start, final=True)
            if found is None:
                continue
            hits.append(Hit(found.rule, folded.starts[start], folded.starts[found.end]))
            if found.rule.action != "flag":
                free = found.end
        return hits

    def probe(self, text: str, start: int, *, final: bool) -> Found | None:
        """What begins here in a folded text; MORE while any rule is undecided."""
        best: Found | None = None
        for finder in self._finders:
            found = finder.probe(text, start, final=final)
            if found is MORE:
                return MORE
            best = strongest(best, found)
        return best


def redacted(text: str, hits: Iterable[Hit]) -> str:
    """The text with what has to be redacted replaced."""
    parts, at = [], 0
    for hit in hits:
        if hit.rule.action == "redact":
            parts += [text[at : hit.start], hit.rule.marker]
            at = hit.end
    return "".join(parts) + text[at:]


class Decided(NamedTuple):
    """A piece of a text that can become part of no match any more: so many characters, and the hit that they are,
    if any. What is flagged has no characters of its own: they follow. Any other may have none, too."""

    length: int
    rule: Rule | None = None


class Scanner:
    """Reads one text as it comes. `num_held` characters at its end may still become a match.

    `before` is text that went before and is not looked at again.
    """

    def __init__(self, matcher: Matcher, before: str = "") -> None:
        self._matcher = matcher
        self._before = Folded(before).text[-1:].strip()
        self._held = ""

    @property
    def held(self) -> str:
        """The end of the text, while it may still become a match."""
        return self._held

    def push(self, text: str) -> list[Decided]:
        """What is decided now that `text` has come."""
        self._held += text
        return self._decide(final=False)

    def finish(self) -> list[Decided]:
        """The rest: nothing follows."""
        return self._decide(final=True)

    def _decide(self, *, final: bool) -> list[Decided]:
        folded = Folded(self._before + self._held)
        text, at, done = folded.text, len(self._before), len(self._before)
        decided: list[Decided] = []
        while at < len(text):
            found = self._matcher.probe(text, at, final=final)
            if found is MORE:
                break
            if found is None:
                at += 1
                continue
            begin = folded.starts[at]
            decided.append(Decided(begin - done))
            at = at + 1 if found.rule.action == "flag" else found.end
            done = begin if found.rule.action == "flag" else folded.starts[at]
            decided.append(Decided(done - begin, found.rule))
        free = folded.starts[at]
        decided.append(Decided(free - done))
        self._held = self._held[free - len(self._before) :]
        self._before = text[at - 1 : at].strip() if at else ""
        return decided


def _merged(starts: Iterable[Iterator[int]]) -> Iterator[int]:
    """Ascending, each once."""
    last = -1
    for start in heapq.merge(*(sorted(set(each)) for each in starts)):
        if start != last:
            last = start
            yield start
