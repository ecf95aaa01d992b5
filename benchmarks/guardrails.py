"""What guardrails cost: a prompt of 1,000 words and an answer's tokens against 10,000 terms, and all detectors.

    python benchmarks/guardrails.py [--terms 10000] [--json]

Times are this process's CPU: the median over the repetitions, and the worst tenth. Half of the terms are made of the
text's own words, so that it nearly matches everywhere; the first column says how often it does match.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from inferflux.registry.guardrails.folding import fold
from inferflux.registry.guardrails.matcher import Matcher, Scanner
from inferflux.registry.guardrails.pii import DETECTORS
from inferflux.registry.guardrails.rule import Finder, Rule
from inferflux.registry.guardrails.terms import Terms

NUM_WORDS = 1000
SYLLABLES = ("ka", "lo", "mir", "ten", "sa", "vo", "dru", "pen", "ish", "ar", "qui", "bel", "no", "gra", "ul", "the")


class Timing(NamedTuple):
    """Microseconds for each call, on a text with so many matches."""

    what: str
    hits: int
    median_us: float
    p90_us: float


def main() -> None:
    """Print one row for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--terms", type=int, default=10_000)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    timings = measure(arguments.terms, arguments.repetitions)
    if arguments.json:
        json.dump([each._asdict() for each in timings], sys.stdout)
        return
    for each in timings:
        sys.stdout.write(f"{each.hits:>5} {each.what:<58} {each.median_us:>9.1f} us {each.p90_us:>9.1f} us (p90)\n")


def measure(num_terms: int, repetitions: int) -> list[Timing]:
    """Every case."""
    draw = random.Random(7)
    words = [word(draw) for _ in range(4000)]
    # Terms of one to four words, half of them made of words that the text is full of: the text nearly matches often.
    terms = sorted({" ".join(draw.choices(words, k=draw.randint(2, 4))) for _ in range(num_terms // 2)})
    terms += [word(draw) + "zx" for _ in range(num_terms - len(terms))]
    text = english(draw, words)
    accented = text.replace("a", "á")
    tokens = pieces(text)
    blocklist = Terms({fold(term): Rule("blocklist", "redact") for term in terms})
    detectors: list[Finder] = [made(Rule(name, "redact")) for name, kinds in DETECTORS.items() for made in kinds]
    rows = []
    for name, matcher in (
        (f"{num_terms:,} terms", Matcher([blocklist])),
        ("all detectors", Matcher(detectors)),
        (f"{num_terms:,} terms and all detectors", Matcher([blocklist, *detectors])),
    ):
        for kind, given in (("prompt of 1,000 words", text), ("with accents", accented)):
            taken = timed(repetitions, partial(matcher.find, given))
            rows.append(summary(f"{kind}, {name}", len(matcher.find(given)), taken))
        taken = per_token(repetitions, matcher, tokens)
        rows.append(summary(f"one token of an answer, {name}", len(matcher.find(text)), taken))
    return rows


def english(draw: random.Random, words: list[str]) -> str:
    """A text whose words are as unevenly frequent as those of a language (Zipf's law)."""
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    return " ".join(draw.choices(words, weights, k=NUM_WORDS))


def word(draw: random.Random) -> str:
    return "".join(draw.choices(SYLLABLES, k=draw.randint(2, 4)))


def pieces(text: str) -> list[str]:
    """Cut like a tokenizer does: a space with the beginning of a word, then the rest of it."""
    return [part for each in text.split(" ") for part in (" " + each[:5], each[5:]) if part]


def timed(repetitions: int, call: Callable[[], object]) -> list[float]:
    taken = []
    for _ in range(repetitions):
        started = time.process_time_ns()
        call()
        taken.append((time.process_time_ns() - started) / 1000)
    return taken


def per_token(repetitions: int, matcher: Matcher, tokens: list[str]) -> list[float]:
    """Mean cost of a token in each of several answers."""

    def answer() -> None:
        scanner = Scanner(matcher)
        for token in tokens:
            scanner.push(token)
        scanner.finish()

    return [each / len(tokens) for each in timed(max(10, repetitions // 10), answer)]


def summary(what: str, hits: int, taken: list[float]) -> Timing:
    return Timing(what, hits, round(statistics.median(taken), 2), round(statistics.quantiles(taken, n=10)[-1], 2))


if __name__ == "__main__":
    main()
