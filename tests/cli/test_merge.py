from __future__ import annotations

import asyncio
import io
import json

import pytest

from inferflux.cli.merge import MAX_LINE, LineMerger


def merger(form, *, coloured: bool = False) -> tuple[LineMerger, io.StringIO]:
    out = io.StringIO()
    return LineMerger(out, form, coloured=coloured), out


def reader(*pieces: bytes) -> asyncio.StreamReader:
    stream = asyncio.StreamReader(limit=2**20)
    for piece in pieces:
        stream.feed_data(piece)
    stream.feed_eof()
    return stream


@pytest.mark.parametrize(
    "line", ["12:00:00.123 worker-1 claimed request=1", "\x1b[2m12:00:00.123\x1b[0m api hi", "    in a traceback"]
)
def test_our_own_lines_pass_as_they_are(line):
    assert merger("text")[0].merge("worker-1", line) == line


def test_a_librarys_words_get_the_process_name():
    line = merger("text")[0].merge("worker-1", "GGML_ASSERT failed")
    assert line.split()[1:] == ["worker-1", "GGML_ASSERT", "failed"]
    assert "\x1b[35mworker-1\x1b[0m" in merger("text", coloured=True)[0].merge("worker-1", "x")


def test_json_stays_json():
    own = '{"ts": "2026-01-01T00:00:00.000Z", "event": "claimed"}'
    merge = merger("json")[0].merge
    assert merge("worker", own) == own
    foreign = json.loads(merge("worker", 'ggml "said" \x1b[31mthis'))
    assert (foreign["process"], foreign["fields"]) == ("worker", {"text": 'ggml "said" \x1b[31mthis'})


async def test_lines_are_whole_however_they_arrive():
    merge, out = merger("text")
    await merge.drink("api", reader(b"12:00:00.000 api o", b"ne\r\n12:00:00.000 api two\n    la", b"st"))
    assert out.getvalue() == "12:00:00.000 api one\n12:00:00.000 api two\n    last\n"


async def test_a_line_without_end_is_cut_and_bytes_that_are_no_text_are_replaced():
    merge, out = merger("json")
    await merge.drink("api", reader(b"x" * (MAX_LINE + 5), b"\n\xff\n"))
    texts = [json.loads(line)["fields"]["text"] for line in out.getvalue().splitlines()]
    assert "".join(texts) == "x" * (MAX_LINE + 5) + "\ufffd"
    assert max(map(len, texts)) <= MAX_LINE
