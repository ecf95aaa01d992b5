"""Detectors of personal data and secrets, each with what a text must look like to become a match later.

They read folded text: lower case, plain digits, one space at most.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator

from .rule import MORE, Found, Rule

Verify = Callable[[str, int, int], int | None]
"""Given a text and where the pattern begins and ends in it: where the match really ends, if it is one."""

Part = tuple[str, int, int]
"""A character class, and how many of it at least and at most."""

_IBANS = (
    "ad24 ae23 al28 at20 az28 ba20 be16 bg22 bh22 bi27 br29 by28 ch21 cr22 cy28 cz24 de22 dj27 dk18 do28 ee20 "
    "eg29 es24 fi18 fk18 fo18 fr27 gb22 ge22 gi23 gl18 gr27 gt28 hr21 hu28 ie22 il23 iq23 is26 it27 jo30 kw30 "
    "kz20 lb28 lc32 li21 lt20 lu20 lv21 ly25 mc27 md24 me22 mk19 mn20 mr27 mt31 mu30 ni28 nl18 no15 om23 pk24 "
    "pl28 ps29 pt25 qa29 ro24 rs22 ru33 sa24 sc31 sd18 se24 si19 sk24 sm27 so23 st25 sv28 tl23 tn24 tr26 ua29 "
    "va22 vg24 xk20 "
)
IBAN_LENGTHS = {each[:2]: int(each[2:]) for each in _IBANS.split()}
"""Characters of an IBAN by country: the SWIFT IBAN registry."""


class Detector:
    """Finds what `whole` matches and `verify` confirms. `prefix` matches exactly what may still become a match, or a
    longer one, when more text comes. `start` is what it begins with, `before` what it does not follow, and `needs`
    what every text holds somewhere that holds a match."""

    def __init__(
        self,
        rule: Rule,
        whole: str,
        prefix: str,
        *,
        start: str,
        needs: str = r"\d",
        before: str = r"\w",
        verify: Verify | None = None,
    ) -> None:
        self._rule = rule
        self._whole = re.compile(rf"(?<!{before})(?:{whole})")
        self._prefix = re.compile(rf"(?<!{before})(?:{prefix})")
        self._starts = re.compile(rf"(?<!{before})(?=(?:{start}))(?=(?:{whole}))")
        self._start = re.compile(start)
        self._needs = re.compile(needs)
        self._verify = verify

    def starts(self, text: str) -> Iterator[int]:
        """Where in a complete text the pattern matches."""
        if self._needs.search(text) is not None:
            yield from (match.start() for match in self._starts.finditer(text))

    def probe(self, text: str, start: int, *, final: bool) -> Found | None:
        """What begins here: None for nothing, MORE when that depends on text still to come."""
        if self._start.match(text, start) is None:
            return None
        if not final and self._prefix.fullmatch(text, start) is not None:
            return MORE
        match = self._whole.match(text, start)
        if match is None:
            return None
        end = match.end() if self._verify is None else self._verify(text, start, match.end())
        return None if end is None else Found(self._rule, end)


def mail(rule: Rule) -> Detector:
    """Addresses as people write them (RFC 5321 without quoted names)."""
    name, label = r"[\w%+][\w.%+-]{0,63}", r"[\w-]{1,63}"
    return Detector(
        rule,
        rf"{name}@(?:{label}\.){{1,8}}[^\W\d_]{{2,24}}",
        rf"{name}(?:@(?:{label}\.){{0,8}}(?:{label})?)?",
        start=r"[\w%+]",
        needs="@",
        before=r"[\w%+@]",
    )


def phone(rule: Rule) -> Detector:
    """Numbers with a country code, in the North American form, or in groups after a leading 0."""
    gap = r"[ ().\-/]{0,2}"
    coded = rf"(?:\+|00)[1-9](?:{gap}\d){{6,13}}(?!\d)"
    american = r"(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?!\d)"
    national = r"0\d{1,4}[ /.-]\d{3,4}(?:[ .-]?\d{2,4}){1,3}(?!\d)"
    prefixes = (
        rf"0|(?:\+|00)(?:[1-9](?:{gap}\d){{0,13}}{gap})?",
        r"\((?:\d{0,2}|\d{3}(?:\) ?(?:\d{0,2}|\d{3}(?:[ .-]\d{0,4})?))?)",
        r"\d{0,2}|\d{3}(?:[ .-](?:\d{0,2}|\d{3}(?:[ .-]\d{0,4})?))?",
        r"0\d{0,4}|0\d{1,4}[ /.-](?:\d{0,2}|\d{3,4}(?:[ .-]?\d{2,4}){0,3}(?:[ .-]?\d{0,3}))",
    )
    return Detector(rule, f"{coded}|{american}|{national}", "|".join(prefixes), start=r"[+(\d]", before=r"[\w+]")


def card(rule: Rule) -> Detector:
    """Payment card numbers of 13 to 19 digits (ISO/IEC 7812) whose check digit is right."""
    return Detector(
        rule,
        r"[2-6](?:[ -]?\d){12,18}",
        r"[2-6](?:[ -]?\d){0,18}[ -]?",
        start="[2-6]",
        verify=_card_end,
    )


def iban(rule: Rule) -> Detector:
    """International bank account numbers (ISO 13616) whose length and check digits are right."""
    countries: defaultdict[int, list[str]] = defaultdict(list)
    for country, length in IBAN_LENGTHS.items():
        countries[length - 4].append(country)
    alike = [("|".join(names), length) for length, names in countries.items()]
    return Detector(
        rule,
        "|".join(rf"(?:{names})\d\d(?: ?[a-z\d]){{{length}}}(?![a-z\d])" for names, length in alike),
        "[a-z]|" + "|".join(rf"(?:{names})(?:\d?|\d\d(?: ?[a-z\d]){{0,{length}}})" for names, length in alike),
        start=r"[a-z](?:\Z|[a-z](?:\Z|\d))",
        verify=_iban_end,
    )


def keys(rule: Rule) -> Detector:
    """API keys and private keys by the marks that their issuers put on them."""
    word, wide = "[a-z0-9]", r"[a-z0-9_\-]"
    shapes = (
        (*_literal("sk-"), (wide, 20, 256)),
        (*_literal("a"), ("[ks]", 1, 1), *_literal("ia"), (word, 16, 16)),
        (*_literal("gh"), ("[pousr]", 1, 1), *_literal("_"), (word, 36, 255)),
        (*_literal("github_pat_"), ("[a-z0-9_]", 22, 255)),
        (*_literal("xox"), ("[abeprs]", 1, 1), *_literal("-"), (r"[a-z0-9\-]", 10, 255)),
        (*_literal("aiza"), (wide, 35, 35)),
        (*_literal("sk_"), ("[lt]", 1, 1), ("[a-z]", 3, 3), *_literal("_"), (word, 16, 255)),
        (*_literal("eyj"), (wide, 8, 2048), (r"\.", 1, 1), (wide, 8, 4096), (r"\.", 1, 1), (wide, 8, 2048)),
    )
    return Detector(
        rule,
        "|".join("".join(f"{kind}{{{least},{most}}}" for kind, least, most in shape) for shape in shapes),
        "|".join(_prefix(shape) for shape in shapes),
        start="[agsxe]",
        needs="sk-|a[ks]ia|gh[pousr]_|github_pat_|xox|aiza|sk_|eyj",
        before=r"[\w\-]",
        verify=_whole_key,
    )


def private_key(rule: Rule) -> Detector:
    """Private keys in PEM (RFC 7468), whether or not they are complete."""
    head = (*_literal("-----begin "), ("[a-z0-9 ]", 0, 20), *_literal("private key-----"))
    begin = r"-----begin [a-z0-9 ]{0,20}private key-----"
    line = "[a-z0-9+/=]"
    return Detector(
        rule,
        rf"{begin}(?: {line}{{20,4096}}){{1,400}}",
        rf"{_prefix(head)}|{begin}(?: {line}{{20,4096}}){{0,400}}(?: {line}{{0,4096}})?",
        start="-",
        needs="-----begin",
        before="-",
    )


DETECTORS: dict[str, tuple[Callable[[Rule], Detector], ...]] = {
    "pii.mail": (mail,),
    "pii.phone": (phone,),
    "pii.card": (card,),
    "pii.iban": (iban,),
    "pii.keys": (keys, private_key),
}
"""What finds each kind of data."""


def _literal(text: str) -> Iterator[Part]:
    return ((re.escape(char), 1, 1) for char in text)


def _prefix(parts: tuple[Part, ...]) -> str:
    """A pattern of every beginning of what these parts match one after the other."""
    pattern = ""
    for kind, least, most in reversed(parts):
        short = f"{kind}{{0,{least - 1}}}" if least > 1 else ""
        pattern = f"(?:{short}|{kind}{{{least},{most}}}{pattern})"
    return pattern


def _whole_key(text: str, start: int, end: int) -> int | None:
    """A key is followed by what no key holds."""
    follows = text[end : end + 1]
    return None if follows.isalnum() else end


def _card_end(text: str, start: int, _: int) -> int | None:
    """The longest number here that passes the Luhn test and is not followed by a digit."""
    digits: list[int] = []
    found = None
    for end in range(start, min(len(text), start + 38)):
        char = text[end]
        if not char.isdecimal():
            if char not in " -" or not text[end - 1].isdecimal():
                break
            continue
        digits.append(int(char))
        whole = not text[end + 1 : end + 2].isalnum()
        if len(digits) > 19:
            break
        if len(digits) >= 13 and whole and _luhn(digits):
            found = end + 1
    return found


def _luhn(digits: list[int]) -> bool:
    doubled = [digit if place % 2 == 0 else digit * 2 - 9 * (digit > 4) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _iban_end(text: str, start: int, end: int) -> int | None:
    """The end, if the remainder is right (ISO 7064, MOD 97-10)."""
    characters = text[start:end].replace(" ", "")
    number = "".join(str(int(char, 36)) for char in characters[4:] + characters[:4])
    return end if int(number) % 97 == 1 else None
