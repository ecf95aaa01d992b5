"""A rule: which guardrail something belongs to, and what it does about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from inferflux.broker.wire.policies import GuardrailAction

_STRENGTH = {"flag": 0, "redact": 1, "block": 2}


class Rule(NamedTuple):
    """`guardrail` is a set's name, or `blocklist`: it is told, what it matched is not."""

    guardrail: str
    action: GuardrailAction

    @property
    def marker(self) -> str:
        """What stands for a text that was redacted."""
        return f"[redacted:{self.guardrail}]"


class Found(NamedTuple):
    """A match that ends before `end`; the weaker of two rules at one place gives way, then the shorter match."""

    rule: Rule
    end: int


MORE = Found(Rule("", "flag"), -1)
"""It depends on text still to come."""


class Finder(Protocol):
    """Finds one kind of thing in folded text. Whether something begins at a place depends on the one character before
    it and on what follows, never on more."""

    def starts(self, text: str) -> Iterator[int]:
        """Where in a complete text something may begin: all those places, and possibly others."""

    def probe(self, text: str, start: int, *, final: bool) -> Found | None:
        """What begins at `start`: None for nothing whatever follows, MORE when that depends on what follows.

        `final` says that nothing follows; then it is never MORE.
        """


def stronger(one: Rule | None, other: Rule) -> Rule:
    """Which of two rules counts; the first where they are alike."""
    return other if one is None or _STRENGTH[other.action] > _STRENGTH[one.action] else one


def strongest(one: Found | None, other: Found | None) -> Found | None:
    """Which of two matches that begin at one place counts."""
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda found: (_STRENGTH[found.rule.action], found.end))
