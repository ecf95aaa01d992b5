from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferflux.workers.engine.decoder import TextDecoder

LETTERS = "ab€😀"
texts = st.text(alphabet=LETTERS, max_size=40)
stops = st.lists(st.text(alphabet=LETTERS, min_size=1, max_size=4), max_size=3)
junk = st.lists(st.sampled_from([b"a", b"b", "€".encode(), "😀".encode(), b"\x80", b"\xff", b"\xf0\x9f"]), max_size=30)


def first_stop(text: str, stop: list[str]) -> int | None:
    """Where the text ends because of a stop string, by trying every end in turn."""
    for end in range(len(text) + 1):
        starts = [end - len(one) for one in stop if text[:end].endswith(one)]
        if starts:
            return min(starts)
    return None


def safe_length(text: str, stop: list[str]) -> int:
    """How much of a text without a stop string can never become part of one."""
    for start in range(len(text)):
        if any(one.startswith(text[start:]) for one in stop):
            return start
    return len(text)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in pairwise(bounds)]


@given(texts, stops, st.lists(st.integers(0, 200), max_size=20))
def test_text_leaves_as_soon_as_it_may_and_never_sooner(text: str, stop: list[str], cuts: list[int]) -> None:
    decoder = TextDecoder(stop)
    seen = b""
    out = ""
    for piece in pieces_of(text.encode(), cuts):
        seen += piece
        out += decoder.push(piece)
        known = seen.decode(errors="ignore")
        end = first_stop(known, stop)
        assert out == known[: safe_length(known, stop) if end is None else end]
        assert decoder.stopped == (end is not None)
        if decoder.stopped:
            return
    assert out + decoder.finish() == text


@given(junk, st.lists(st.integers(0, 200), max_size=20))
def test_invalid_bytes_become_what_replace_makes_of_them(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    decoder = TextDecoder(())
    out = "".join(decoder.push(piece) for piece in pieces_of(data, cuts))
    assert out + decoder.finish() == data.decode(errors="replace")


@given(junk, stops, st.lists(st.integers(0, 200), max_size=20))
def test_how_the_bytes_are_cut_does_not_matter(parts: list[bytes], stop: list[str], cuts: list[int]) -> None:
    data = b"".join(parts)
    outs = []
    for pieces in ([data], pieces_of(data, cuts)):
        decoder = TextDecoder(stop)
        out = "".join(decoder.push(piece) for piece in pieces)
        outs.append((out if decoder.stopped else out + decoder.finish(), decoder.stopped))
    assert outs[0] == outs[1]


@pytest.mark.parametrize(
    ("stop", "pieces", "text"),
    [
        (["\n\n"], ["one", "\n", "\ntwo"], "one"),
        (["END"], ["E", "N", "EN", "D", "tail"], "EN"),
        (["aab"], ["a", "a", "a", "b"], "a"),
        (["b", "abc"], ["xabc"], "xa"),
        (["bc", "abc"], ["xabc"], "x"),
        (["", "no"], ["yes"], "yes"),
    ],
)
def test_stop_strings(stop: list[str], pieces: list[str], text: str) -> None:
    decoder = TextDecoder(stop)
    out = ""
    for piece in pieces:
        out += decoder.push(piece.encode())
        if decoder.stopped:
            break
    assert (out if decoder.stopped else out + decoder.finish()) == text


def test_a_held_back_beginning_of_a_stop_string_leaves_at_the_end() -> None:
    decoder = TextDecoder(["STOP"])
    assert decoder.push(b"go ST") == "go "
    assert decoder.finish() == "ST"


def test_a_character_cut_off_at_the_end_is_replaced() -> None:
    decoder = TextDecoder(())
    assert decoder.push("😀".encode()[:3]) == ""
    assert decoder.finish() == "\ufffd"
