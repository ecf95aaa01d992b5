from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from inferflux.cli import stream
from inferflux.cli.client import Client
from inferflux.cli.errors import CommandFailed, ServerRefused
from inferflux.cli.sse import Event, parse_events

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


class Replicas:
    """Two of them: the first breaks an answer off as it was told to, either has the rest."""

    def __init__(self, first: Exception | bytes) -> None:
        self.first = first
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if request.method == "POST":
            begun = b'id: 7.1\ndata: {"a":1}\n\n'
            return httpx.Response(200, headers={"x-request-id": "r-1"}, stream=Broken(begun, self.first))
        if len(self.asked) == 2:
            return httpx.Response(503, json={"error": {"message": "leaving", "code": "draining"}})
        return httpx.Response(200, content=b'id: 7.2\ndata: {"a":2}\n\ndata: [DONE]\n\n')


class Broken(httpx.SyncByteStream):
    """Some bytes, and then no more, for whatever reason."""

    def __init__(self, begun: bytes, error: Exception | bytes) -> None:
        self._begun = begun
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        yield self._begun
        if isinstance(self._error, Exception):
            raise self._error
        yield self._error


@pytest.mark.parametrize(
    "end",
    [
        httpx.ReadError("reset by peer"),
        httpx.RemoteProtocolError("peer closed connection"),
        b"",
        b'data: {"error":{"message":"leaving","code":"draining"}}\n\n',
    ],
    ids=["reset", "closed", "cut", "drained"],
)
def test_a_stream_that_breaks_off_is_read_on_at_another_replica(end, monkeypatch):
    monkeypatch.setattr(stream, "PAUSE_S", 0.0)
    replicas = Replicas(end)
    with Client("http://one,http://two", transport=httpx.MockTransport(replicas)) as http:
        assert list(http.stream("/v1/completions", {})) == [{"a": 1}, {"a": 2}]
    assert [str(each.url) for each in replicas.asked] == [
        "http://one/v1/completions",
        "http://two/v1/streams/r-1",
        "http://one/v1/streams/r-1",
    ]
    assert replicas.asked[0].headers["x-inferflux-resumable"] == "true"
    assert [each.headers["last-event-id"] for each in replicas.asked[1:]] == ["7.1", "7.1"]


def test_a_stream_that_does_not_come_back_is_given_up(monkeypatch):
    monkeypatch.setattr(stream, "RESUME_S", 0.0)
    with Client("http://one", transport=httpx.MockTransport(Replicas(httpx.ReadError("reset by peer")))) as http:
        chunks = http.stream("/v1/completions", {}, resumable=False)
        assert next(chunks) == {"a": 1}
        with pytest.raises(CommandFailed, match="reset by peer"):
            next(chunks)


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
