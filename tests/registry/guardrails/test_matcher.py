"""Matching: what folds alike is found, at the edges of words, and a text that comes in pieces is read like a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inferflux.broker.wire.policies import GuardrailAction
from inferflux.registry.guardrails.folding import fold
from inferflux.registry.guardrails.matcher import Decided, Matcher, Scanner, redacted
from inferflux.registry.guardrails.pii import DETECTORS
from inferflux.registry.guardrails.rule import Finder, Rule
from inferflux.registry.guardrails.terms import Terms

TERMS = ("Secret", "top secret", "secret plan b", "naïve", "機密", "c++", "가방", "गोपनीय", "a b a b c")


def terms(*given: str, action: GuardrailAction = "block") -> Terms:
    return Terms({fold(term): Rule("terms", action) for term in given})


def detectors(action: GuardrailAction = "redact") -> list[Finder]:
    return [detector(Rule(name, action)) for name, made in DETECTORS.items() for detector in made]


def found(text: str, *finders: Finder) -> list[str]:
    return [text[hit.start : hit.end] for hit in Matcher(finders or [terms(*TERMS)]).find(text)]


@pytest.mark.parametrize(
    "text",
    [
        "a secret.",
        "SECRET",
        "the\nsecret\tthing",
        "a-secret-thing",
        "\uff53\uff45\uff43\uff52\uff45\uff54",
        "\U0001d4fc\U0001d4ee\U0001d4ec\U0001d4fb\U0001d4ee\U0001d4fd",
        "s\u200be\u00adc\u2060ret",
        "s\u0336e\u0336cret",
        "sécrèt",
        "'secret'",
        "secret_key",
        "TOP \u00a0\n SECRET",
        "naive",
        "NAI\u0308VE",
        "これは機密です",
        "c++ and",
        "가방은",
        "\u1100\u1161\u1107\u1161\u11bc",
        "यह गोपनीय है",
    ],
)
def test_what_reads_alike_is_found(text: str) -> None:
    assert found(text)


@pytest.mark.parametrize(
    "text",
    ["secrets", "asecret", "secret1", "topsecret", "nai", "ec", "c+", "", "  ", "가바", "가밧", "गोपनीयता", "sec ret"],
)
def test_what_is_part_of_a_word_is_not(text: str) -> None:
    assert not found(text)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("write to john.doe+x@mail.example.co.uk.", ["john.doe+x@mail.example.co.uk"]),
        ("JOHN@EXAMPLE.COM", ["JOHN@EXAMPLE.COM"]),
        ("john@example", []),
        ("@john and a@b", []),
        ("+49 (0)171 1234567", ["+49 (0)171 1234567"]),
        ("call (555) 123-4567!", ["(555) 123-4567"]),
        ("555.123.4567", ["555.123.4567"]),
        ("0171-1234567, 030 901820", ["0171-1234567", "030 901820"]),
        ("in 2024-01-15 10:30 we sold 12345678 of them at 1,000,000.00", []),
        ("4111 1111 1111 1111", ["4111 1111 1111 1111"]),
        ("4111-1111-1111-1111 378282246310005", ["4111-1111-1111-1111", "378282246310005"]),
        ("4111 1111 1111 1112", []),
        ("41111111111111111", []),
        ("DE89 3704 0044 0532 0130 00 is it", ["DE89 3704 0044 0532 0130 00"]),
        ("gb82west12345698765432", ["gb82west12345698765432"]),
        ("DE88370400440532013000 or DE8937040044053201300", []),
        ("key=sk-proj_abcdefghijklmnopqrst", ["sk-proj_abcdefghijklmnopqrst"]),
        ("AKIAIOSFODNN7EXAMPLE", ["AKIAIOSFODNN7EXAMPLE"]),
        ("ghp_" + "a1" * 18, ["ghp_" + "a1" * 18]),
        ("the asia region, task-based, skeleton", []),
        ("-----BEGIN PRIVATE KEY-----\n" + "A" * 64 + "\n" + "B" * 64, [None]),
    ],
)
def test_detectors(text: str, matches: list[str | None]) -> None:
    assert found(text, *detectors()) == [text if each is None else each for each in matches]


def test_redaction_says_what_was_there() -> None:
    matcher = Matcher([*detectors(), terms("secret", action="redact")])
    text = "my secret is a@b.com!"
    assert redacted(text, matcher.find(text)) == "my [redacted:terms] is [redacted:pii.mail]!"


def test_the_stronger_rule_counts_and_a_flag_hides_nothing() -> None:
    flags = terms("secret plan", "top secret", action="flag")
    hits = Matcher([flags, terms("secret")]).find("a top secret plan")
    assert [hit.rule.action for hit in hits] == ["flag", "block"]


MATCHER = Matcher([terms(*TERMS), terms("flag me", "me too", action="flag"), *detectors()])
ALPHABET = [
    *(
        "s",
        "e",
        "c",
        "r",
        "t",
        " ",
        "  ",
        "a",
        "b",
        "o",
        "p",
        "\n",
        "\u200b",
        "\u0301",
        "_",
        "-",
        ".",
        "@",
        "+",
        "(",
        ")",
    ),
    *(
        "top ",
        "secret",
        "Secret ",
        "plan",
        " b",
        "機",
        "密",
        "가",
        "방",
        "\u11bc",
        "गो",
        "पनीय",
        "ता",
        "c++",
        "naï",
        "ve",
    ),
    *(
        "4111 ",
        "1111",
        "-1111",
        "4",
        "555",
        "123-4567",
        "+49 171",
        "12345678",
        "0",
        "00",
        "/",
        "DE89",
        "3704 0044 ",
        "0532",
    ),
    *(
        " 0130 00",
        "x@y.com",
        ".uk",
        "sk-",
        "abcdefghij",
        "flag",
        " me",
        " too",
        "\uff45",
        "ß",
        "ﬃ",
        "İ",
        "\u3099",
        "か",
    ),
]
TEXTS = st.lists(st.sampled_from(ALPHABET), max_size=14)


def scan(pieces: Sequence[str], matcher: Matcher = MATCHER, before: str = "") -> list[Decided]:
    scanner = Scanner(matcher, before)
    return [each for piece in pieces for each in scanner.push(piece)] + scanner.finish()


def spans(decided: Iterable[Decided]) -> list[tuple[Rule, int, int]]:
    at, result = 0, []
    for each in decided:
        if each.rule is not None:
            result.append((each.rule, at, at + each.length))
        at += each.length
    return result


@settings(max_examples=400, deadline=None)
@given(TEXTS)
@example(["top ", " ", " ", "secret"])
@example(["4111 ", "1111", "-1111", "4", "111", " ", "x"])
@example(["x@y.com", ".uk", ".", " "])
@example(["top", "\u200b", " ", "\n", "secret", "\u0301"])
def test_a_text_in_pieces_is_read_like_a_whole(pieces: list[str]) -> None:
    text = "".join(pieces)
    whole = [(hit.rule, hit.start, hit.start if hit.rule.action == "flag" else hit.end) for hit in MATCHER.find(text)]
    decided = scan(pieces)
    assert sum(each.length for each in decided) == len(text)
    assert spans(decided) == whole
    assert spans(scan(list(text))) == whole


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_only_what_may_still_become_a_match_is_held(pieces: list[str]) -> None:
    """Of terms alone: something is held if and only if some continuation makes a match of its beginning."""
    matcher = Matcher([terms(*TERMS)])
    scanner = Scanner(matcher)
    for piece in pieces:
        scanner.push(piece)
        held = fold(scanner.held)
        if held:
            assert any(fold(term).startswith(held) for term in TERMS), scanner.held
    text = "".join(pieces)
    tail = fold(text)
    live = [
        at
        for at in range(len(tail))
        if any(fold(term).startswith(tail[at:]) for term in TERMS) and matcher.probe(tail, at, final=False) is not None
    ]
    if live and not matcher.find(text):
        assert len(fold(scanner.held)) == len(tail) - live[0]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_any_text_comes_out_complete(text: str, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[one:two] for one, two in pairwise(edges)]
    decided = scan(pieces)
    assert sum(each.length for each in decided) == len(text)
    assert [each[0] for each in spans(decided)] == [hit.rule for hit in MATCHER.find(text)]


def test_what_went_before_decides_whether_a_word_begins() -> None:
    assert spans(scan(["secret "], before="top")) == []
    assert len(spans(scan(["secret "], before="top "))) == 1
