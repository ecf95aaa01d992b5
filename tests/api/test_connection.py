"""What a connection may cost: sizes and times of what comes before there is a whole request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from inferflux.api import connection
from inferflux.api.connection import BoundedProtocol

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"


class App:
    """Answers with the body's length, once it is there; remembers what clients hung up on."""

    def __init__(self) -> None:
        self.hung_up = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.hung_up.set()
                return
            size += len(message["body"])
            more = message["more_body"]
        body = str(size).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


class Scene:
    """A server, and its address."""

    def __init__(self, app: App, port: int) -> None:
        self.app = app
        self._port = port

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def answer(self, *pieces: bytes) -> bytes:
        """All that comes back until the server closes."""
        async with self.connected() as (reader, writer), asyncio.timeout(30):
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            except ConnectionError:
                pass
            return await reader.read()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    app = App()
    config = uvicorn.Config(app, port=0, http=BoundedProtocol, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    yield Scene(app, server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    await task


def refused(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == code


async def test_two_requests_of_one_connection_are_answered(scene: Scene) -> None:
    first = HEAD + b"x: " + b"y" * 60_000 + b"\r\ncontent-length: 5\r\n\r\nhello"
    answer = await scene.answer(first, HEAD + b"connection: close\r\ncontent-length: 2\r\n\r\nhi")
    first, _, second = answer.partition(b"\r\n\r\n5HTTP/1.1 200 ")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.endswith(b"\r\n\r\n2")


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + b"x: " + b"y" * 70_000 + b"\r\n\r\n"],
        [b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\n\r\n"],
        [HEAD, *[b"x%d: y\r\n" % number for number in range(20_000)]],
        [HEAD + b"x: ", *[b"y" * 1000 for _ in range(300)]],
    ],
    ids=["one header", "the path", "many headers", "a header without an end"],
)
async def test_a_head_that_is_too_large_is_refused(scene: Scene, pieces: list[bytes]) -> None:
    refused(await scene.answer(*pieces), 431, "request_too_large")


async def test_what_is_no_http_is_refused(scene: Scene) -> None:
    refused(await scene.answer(b"hello\r\n\r\n"), 400, "invalid_request")


async def test_a_head_that_does_not_end_is_not_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 1.0)
    refused(await scene.answer(HEAD), 408, "invalid_request")
    assert await scene.answer(b"") == b""


async def test_a_body_that_stands_still_is_hung_up_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_PAUSE_S", 0.1)
    assert await scene.answer(HEAD + b"content-length: 10\r\n\r\nhello") == b""
    async with asyncio.timeout(30):
        await scene.app.hung_up.wait()


async def test_a_slow_body_is_read_as_long_as_it_comes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_PAUSE_S", 3.0)
    async with scene.connected() as (reader, writer), asyncio.timeout(30):
        writer.write(HEAD + b"connection: close\r\ncontent-length: 35\r\n\r\n")
        for _ in range(35):
            writer.write(b"x")
            await asyncio.sleep(0.1)
        assert (await reader.read()).endswith(b"\r\n\r\n35")
