from __future__ import annotations

import httpx
import pytest

from inferflux.cli.client import Client, Event, parse_events
from inferflux.cli.errors import CommandFailed, ServerRefused

STREAM = (
    b": ping\n\n"
    b"id: 7\r\ndata: one\r\n\r\n"
    b"event: error\ndata:two\ndata: lines\n\n"
    b"retry: 5\ndata: \xe2\x80\xa8 and \xc2\x85 stay\n\n"
    b"data: never ended"
)
EVENTS = [
    Event("one", id="7"),
    Event("two\nlines", name="error", id="7"),
    Event("\u2028 and \x85 stay", id="7"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_come_out_whole_however_the_stream_is_cut(size):
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert list(parse_events(chunks)) == EVENTS


def client(handler) -> Client:
    return Client("http://server", "sesame", transport=httpx.MockTransport(handler))


def test_the_key_travels_as_a_bearer_token():
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json={})

    with client(answer) as http:
        http.get("/v1/models")
    assert seen == ["Bearer sesame"]


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, "invalid_api_key", "set INFERCTL_API_KEY"),
        (404, "model_not_found", "inferctl models"),
        (400, "invalid_request", "as the server put it [invalid_request]"),
    ],
)
def test_a_refusal_names_cause_code_and_fix(status, code, says):
    body = {"error": {"message": "as the server put it", "type": "t", "code": code}}
    with client(lambda _: httpx.Response(status, json=body)) as http, pytest.raises(ServerRefused) as caught:
        http.post("/v1/completions", {})
    assert says in str(caught.value)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_an_answer_that_is_no_error_of_ours_is_named_by_its_status():
    with client(lambda _: httpx.Response(502, text="<html>")) as http, pytest.raises(ServerRefused, match="502"):
        http.get("/v1/models")


def stream_of(content: bytes, status: int = 200) -> list[dict[str, object]]:
    with client(lambda _: httpx.Response(status, content=content)) as http:
        return list(http.stream("/v1/completions", {}))


def test_a_stream_gives_its_chunks_up_to_done():
    assert stream_of(b'data: {"a":1}\n\n: ping\n\ndata: {"a":2}\n\ndata: [DONE]\n\n') == [{"a": 1}, {"a": 2}]


def test_an_error_event_ends_a_stream():
    with pytest.raises(ServerRefused, match=r"too slow \[queue_timeout\]"):
        stream_of(b'data: {"a":1}\n\ndata: {"error":{"message":"too slow","code":"queue_timeout"}}\n\n')


def test_a_stream_cut_short_is_an_error():
    with pytest.raises(CommandFailed, match="ended before"):
        stream_of(b'data: {"a":1}\n\n')


def test_a_refused_stream_is_explained():
    with pytest.raises(ServerRefused, match="nope"):
        stream_of(b'{"error":{"message":"nope","code":"invalid_request"}}', status=400)


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", ""])
def test_a_wrong_url_is_refused(url):
    with pytest.raises(CommandFailed, match="http://HOST:PORT"):
        Client(url)


def test_no_server_says_how_to_start_one():
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with client(refuse) as http, pytest.raises(CommandFailed, match="inferctl serve"):
        http.get("/v1/models")
