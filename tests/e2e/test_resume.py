"""What a client can do when its API replica, its connection or its patience goes: resume, and retry under a key."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from harness.fleet import stub_text
from harness.server import KEY, Server, running_server

pytestmark = pytest.mark.integration

AUTH = {"authorization": f"Bearer {KEY}"}
NUM_STREAMS = 20
NUM_TOKENS = 160
LONG = 400
"""Tokens of an answer that lasts until all others have begun, on a busy machine too."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two replicas and two workers whose stub takes 20 ms a step."""
    settings = {
        "runtime": {"scheduler": {"max_batch_size": 16}, "stub": {"step_s": 0.02}},
        "streams": {"resume_grace_s": 5.0},
    }
    folder = tmp_path_factory.mktemp("resume")
    with running_server(folder, num_replicas=2, num_workers=2, settings=settings) as server:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=60, headers=AUTH) as client:
        yield client


class Reader:
    """One streaming completion, read over as many connections as it takes."""

    def __init__(self, client: httpx.AsyncClient, number: int) -> None:
        self.body = {
            "model": "stub",
            "prompt": f"Story number {number}",
            "max_tokens": NUM_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        self.request = ""
        self.mark = ""
        self.texts: list[str] = []
        self.ended = False
        self._client = client

    @property
    def tokens(self) -> list[str]:
        """The text of each token that has some."""
        return [text for text in self.texts if text]

    async def read(self, url: str, until: int | None = None) -> None:
        """Start, or go on where the last connection broke off; stop after so many texts."""
        if self.request:
            path, headers = f"/v1/streams/{self.request}", {"last-event-id": self.mark}
            context = self._client.stream("GET", url + path, headers=headers)
        else:
            context = self._client.stream("POST", url + "/v1/completions", json=self.body | {"stream": True})
        async with context as response:
            assert response.status_code == 200, await response.aread()
            self.request = self.request or response.headers["x-request-id"]
            mark = ""
            async for line in response.aiter_lines():
                if line.startswith("id: "):
                    mark = line.removeprefix("id: ")
                elif line == "data: [DONE]":
                    self.ended = True
                elif line.startswith("data: "):
                    self.take(json.loads(line.removeprefix("data: ")), mark)
                if until is not None and len(self.texts) >= until:
                    return

    def take(self, chunk: dict[str, Any], mark: str) -> None:
        assert "error" not in chunk, chunk
        self.texts.append(chunk["choices"][0]["text"])
        self.mark = mark

    async def read_until_cut(self, url: str) -> None:
        with contextlib.suppress(httpx.HTTPError):
            await self.read(url)


async def test_streams_of_a_killed_replica_go_on_at_the_other(server: Server, client: httpx.AsyncClient) -> None:
    readers = [Reader(client, number) for number in range(NUM_STREAMS)]
    for reader in readers:
        reader.body |= {"max_tokens": LONG}
    pid = server.get("/v1/admin/status").json()["pid"]
    reading = [asyncio.create_task(reader.read_until_cut(server.url)) for reader in readers]
    async with asyncio.timeout(60):
        while min(len(reader.texts) for reader in readers) < 5:
            await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    await asyncio.gather(*reading)
    assert not any(reader.ended for reader in readers)

    await asyncio.gather(*(reader.read(server.urls[1]) for reader in readers))

    assert all(reader.ended for reader in readers)
    for reader in readers:
        assert "".join(reader.texts) == stub_text(reader.body["prompt"], LONG)
        # All but the end of the sequence, which was ignored and has no text.
        assert len(reader.tokens) == LONG - 1
    server.wait_ready(2)


async def test_inferctl_reads_on_at_the_other_replica(server: Server, client: httpx.AsyncClient) -> None:
    whole = Reader(client, 1)
    del whole.body["ignore_eos"]
    await whole.read(server.urls[1])
    options = {"--prompt": whole.body["prompt"], "--max-tokens": str(NUM_TOKENS), "--url": ",".join(server.urls)}
    inferctl = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "inferflux.cli.main", "completion", "--stream", "--json", "--temperature", "0"),
        *(part for option in options.items() for part in option),
        env=os.environ | {"INFERCTL_API_KEY": KEY},
        stdout=asyncio.subprocess.PIPE,
    )
    assert inferctl.stdout is not None
    lines = [await inferctl.stdout.readline() for _ in range(5)]
    os.kill(server.get("/v1/admin/status").json()["pid"], signal.SIGKILL)
    lines += (await inferctl.stdout.read()).splitlines()

    assert await inferctl.wait() == 0
    texts = [choice["text"] for line in lines for choice in json.loads(line)["choices"]]
    assert [text for text in texts if text] == whole.tokens
    server.wait_ready(2)


async def test_streams_of_a_killed_replica_are_cancelled_when_nobody_comes(
    server: Server, client: httpx.AsyncClient
) -> None:
    reader = Reader(client, 1)
    reader.body |= {"max_tokens": 4000}
    pid = server.get("/v1/admin/status").json()["pid"]
    reading = asyncio.create_task(reader.read_until_cut(server.url))
    async with asyncio.timeout(60):
        while len(reader.texts) < 5:
            await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    await reading

    def idle() -> bool:
        beats = server.get("/v1/admin/workers", replica=1).json()["data"]
        return not any(model.get("num_running") for beat in beats for model in beat["models"])

    server.wait_until("it goes on without its replica", lambda: not idle())
    server.wait_until("the request is cancelled", idle, timeout_s=75)
    server.wait_ready(2)
    answer = await client.get(f"{server.urls[1]}/v1/streams/{reader.request}")
    assert "cancelled" in answer.text


async def test_a_retry_under_the_same_key_joins_the_first_at_the_other_replica(
    server: Server, client: httpx.AsyncClient
) -> None:
    reader = Reader(client, 1)
    headers = {"idempotency-key": "order-1"}
    bodies = [reader.body, reader.body | {"stream": True}, reader.body]
    posts = [
        client.post(server.urls[number % 2] + "/v1/completions", json=body, headers=headers)
        for number, body in enumerate(bodies)
    ]
    first, streamed, third = await asyncio.gather(*posts)
    later = await client.post(server.urls[1] + "/v1/completions", json=reader.body, headers=headers)
    other = await client.post(server.urls[1] + "/v1/completions", json=reader.body | {"max_tokens": 3}, headers=headers)

    assert first.status_code == 200, first.text
    assert first.json() == third.json() == later.json()
    assert first.json()["id"] in streamed.text
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_conflict")
    assert num_claims(server, first.headers["x-request-id"]) == 1


async def test_the_sdk_retries_under_one_key(server: Server) -> None:
    server.wait_ready(2)
    keys = {"idempotency-key": "sdk-1"}
    urls = iter([server.urls[0], server.urls[1]])

    class Impatient(httpx.AsyncBaseTransport):
        """Loses the first answer, as a broken connection does, and sends the retry to the other replica."""

        def __init__(self) -> None:
            self._inner = httpx.AsyncHTTPTransport()
            self.num_sent = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.num_sent += 1
            request.url = httpx.URL(next(urls) + request.url.path)
            assert request.headers["idempotency-key"] == "sdk-1"
            response = await self._inner.handle_async_request(request)
            if self.num_sent == 1:
                await response.aclose()
                raise httpx.ReadError("the answer is lost", request=request)
            return response

        async def aclose(self) -> None:
            await self._inner.aclose()

    transport = Impatient()
    async with httpx.AsyncClient(transport=transport) as http:
        client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=KEY, http_client=http, max_retries=2)
        answer = await client.completions.create(model="stub", prompt="Hello", max_tokens=10, extra_headers=keys)

    assert transport.num_sent == 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 10
    assert num_claims(server, answer.id.removeprefix("cmpl-")) == 1


def num_claims(server: Server, request: str) -> int:
    """Of a request that was answered, once the log has its end."""
    server.wait_until(
        "its end is told",
        lambda: any('"request ended"' in line and request in line for line in server.log_text().splitlines()),
    )
    return server.num_claims(request)
