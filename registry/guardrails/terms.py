"""Terms: a blocklist of any length, found in folded text at the edges of words.

A sorted list answers what a text could still become, a dictionary what it is: no automaton, whose C libraries do not
say how much of a text is still alive.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise

from .folding import WORD, joined, word_list, words
from .rule import MORE, Found, Rule, strongest


class Terms:
    """Terms as they are when folded, each with its rule. A match begins and ends where a word does."""

    def __init__(self, terms: Mapping[str, Rule]) -> None:
        self._rules = dict(terms)
        self._sorted = sorted(terms)
        self._longest = max(map(len, terms), default=0)
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        # Phrases of words alone are looked up by their first two: a language has few words, and many pairs of them.
        self._phrases: defaultdict[tuple[str, str], list[list[str]]] = defaultdict(list)
        self._alone: set[str] = set()
        for term in terms:
            lengths[_first(term, 0)].add(len(term))
            phrase = word_list(term)
            if len(phrase) > 1 and term == " ".join(phrase):
                self._phrases[phrase[0], phrase[1]].append(phrase)
            else:
                self._alone.add(_first(term, 0))
        self._lengths = {first: tuple(sorted(each)) for first, each in lengths.items()}
        others = sorted({term[0] for term in terms if WORD.match(term) is None})
        self._others = re.compile("[" + "".join(map(re.escape, others)) + "]") if others else None

    def starts(self, text: str) -> Iterator[int]:
        """Where in a complete text a term may begin."""
        there = word_list(text)
        phrases = self._phrases
        found = [at for at, pair in enumerate(pairwise(there)) if pair in phrases and self._says(there, at, pair)]
        if not self._alone.isdisjoint(there):
            found += [at for at, word in enumerate(there) if word in self._alone]
        if found:
            begin = [word.start() for word in words(text)]
            yield from (begin[at] for at in found)
        if self._others is not None:
            yield from (other.start() for other in self._others.finditer(text))

    def probe(self, text: str, start: int, *, final: bool) -> Found | None:
        """What begins here: None for nothing, MORE when that depends on text still to come."""
        size = len(text)
        if not final and size - start <= self._longest and self._begins(text[start:]):
            return None if joined(text, start) else MORE
        found: Found | None = None
        for length in self._lengths.get(_first(text, start), ()):
            end = start + length
            rule = self._rules.get(text[start:end]) if end <= size else None
            if rule is not None and not joined(text, end) and not joined(text, start):
                found = strongest(found, Found(rule, end))
        return found

    def _says(self, there: list[str], at: int, pair: tuple[str, str]) -> bool:
        return any(there[at : at + len(phrase)] == phrase for phrase in self._phrases[pair])

    def _begins(self, text: str) -> bool:
        """Whether a term begins with this text, or is it."""
        at = bisect_left(self._sorted, text)
        return at < len(self._sorted) and self._sorted[at].startswith(text)


def _first(text: str, start: int) -> str:
    """The word that begins here, or the character where none does."""
    word = WORD.match(text, start)
    return text[start] if word is None else word[0]
