"""Folding: texts that read alike become equal, whatever code points, case, accents or invisible characters they use.

Compatibility decomposition (Unicode UAX 15, NFKD) and case folding, less accents and what is not visible; any white
space is one space. Letters of different scripts stay different, however alike they look.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

_ACCENTS = (
    (0x0300, 0x036F),
    (0x0591, 0x05BD),
    (0x05BF, 0x05C7),
    (0x0610, 0x061A),
    (0x064B, 0x065F),
    (0x0670, 0x0670),
    (0x06D6, 0x06DC),
    (0x1AB0, 0x1AFF),
    (0x1DC0, 0x1DFF),
    (0x20D0, 0x20FF),
    (0xFE20, 0xFE2F),
)
_INVISIBLE = (
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xE0100, 0xE01EF),
)
_DROPPED = frozenset(code for first, last in (*_ACCENTS, *_INVISIBLE) for code in range(first, last + 1))
# Scripts that put no spaces between words, and Korean, whose words carry their particles with them.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"

# Vowel signs of Indic scripts belong to their words, but are no letters.
_INDIC = "\u0900-\u0963\u0966-\u0dff"

WORD = re.compile(rf"(?:[^\W_{_UNSPACED}]+|[{_INDIC}]+)+")
"""A word of a script that separates words."""

_PLAIN_WORD = re.compile(r"[^\W_]+", re.ASCII)
_JOINED = re.compile(rf"(?:[^\W_{_UNSPACED}]|[{_INDIC}]){{2}}|.[\u1160-\u11ff\u3099\u309a]", re.DOTALL)


MAX_KEPT = 32
"""Characters of a word that is remembered, at most."""


class _Table(dict[int, str]):
    """What each character becomes, found out once."""

    def __missing__(self, code: int) -> str:
        folded = self[code] = _fold(chr(code))
        return folded


_table = _Table()


class Folded:
    """A folded text that knows where it came from."""

    def __init__(self, text: str) -> None:
        folded = _translated(text)
        self.source = text
        self.text = " ".join(_runs(folded)) if "  " in folded else folded
        self._starts: Sequence[int] | None = None

    @property
    def starts(self) -> Sequence[int]:
        """For each folded character, and for the end, where in the source it begins."""
        if self._starts is None:
            self._starts = self._locate()
        return self._starts

    def _locate(self) -> Sequence[int]:
        if len(self.text) == len(self.source) and (self.source.isascii() or _keeps_places(self.source)):
            return range(len(self.source) + 1)
        starts: list[int] = []
        spaced = False
        for index, char in enumerate(self.source):
            for folded in _table[ord(char)]:
                if folded != " " or not spaced:
                    starts.append(index)
                spaced = folded == " "
        starts.append(len(self.source))
        return starts


def fold(text: str) -> str:
    """The folded text alone."""
    return Folded(text).text


def words(text: str) -> Iterator[re.Match[str]]:
    """The words of a folded text."""
    return (_PLAIN_WORD if text.isascii() else WORD).finditer(text)


def word_list(text: str) -> list[str]:
    """The words of a folded text, without their places: in half the time."""
    return (_PLAIN_WORD if text.isascii() else WORD).findall(text)


def joined(text: str, at: int) -> bool:
    """Whether a word, or a syllable, goes on across this position of a folded text."""
    if not 0 < at < len(text):
        return False
    return _JOINED.match(text, at - 1) is not None


def _runs(folded: str) -> list[str]:
    """Split at runs of spaces, keeping one at each end."""
    return re.split(" +", folded)


def _translated(text: str) -> str:
    # `translate` is fast for ASCII only, and words come again.
    if text.isascii():
        return text.translate(_table)
    return " ".join([_word(part) if len(part) < MAX_KEPT else part.translate(_table) for part in text.split(" ")])


@lru_cache(maxsize=16384)
def _word(text: str) -> str:
    return text.translate(_table)


def _keeps_places(text: str) -> bool:
    """Whether each character becomes exactly one, as far as that is soon said."""
    return all(len(part) < MAX_KEPT and _keeps_place(part) for part in text.split(" "))


@lru_cache(maxsize=16384)
def _keeps_place(text: str) -> bool:
    return all(len(_table[ord(char)]) == 1 for char in text)


def _fold(char: str) -> str:
    if char.isspace():
        return " "
    once = unicodedata.normalize("NFKD", char).casefold()
    kept = (each for each in unicodedata.normalize("NFKD", once) if ord(each) not in _DROPPED)
    return "".join(" " if each.isspace() else each for each in kept if unicodedata.category(each) not in ("Cf", "Cc"))
