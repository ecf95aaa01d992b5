"""Clients that read slowly, or not at all: they cost nobody else anything, and bounded memory."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from chaos.conftest import Scale
from harness.crowd import crowd
from harness.server import KEY, Server, running_server

pytestmark = pytest.mark.integration

NUM_CHOICES = 8
MAX_GROWTH = 40 * 1024 * 1024
"""Two streams of 4,096 frames with log probabilities are about 15 MB; the long form generates ten times as many."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"runtime": {"scheduler": {"max_batch_size": 32}, "stub": {"step_s": 0.004}}}
    with running_server(tmp_path_factory.mktemp("readers"), settings=settings) as server:
        yield server


async def test_slow_readers_slow_nobody_down(server: Server, scale: Scale) -> None:
    """Fails when a replica keeps whatever its clients do not read, or waits for one of them in its shared loop."""
    num_tokens = 5000 if scale.long else 500
    api = next(psutil.Process(child.pid) for child in server.children() if "inferflux.api" in child.cmdline())
    alone_s = await _probe(server)
    before = api.memory_info().rss
    with ExitStack() as sockets:
        silent = sockets.enter_context(_ask_without_reading(server, num_tokens))
        slow = sockets.enter_context(_ask_without_reading(server, num_tokens))
        stop = threading.Event()
        reading = threading.Thread(target=_read_slowly, args=(slow, stop))
        reading.start()
        try:
            await asyncio.to_thread(server.wait_until, "both run", lambda: len(server.holders()) == 2)
            beside_s = await _probe(server)
            await asyncio.to_thread(server.wait_until, "both are generated", lambda: not server.holders(), 600)
            growth = api.memory_info().rss - before
            assert growth < MAX_GROWTH, f"the replica grew by {growth >> 20} MB"
            print(f"grown by {growth >> 20} MB; the slowest probe {alone_s:.3f} s alone, {beside_s:.3f} s beside them")
        finally:
            stop.set()
            reading.join()
        assert silent.recv(1), "the stream was there all the time"
    # Eight more sequences make each step dearer, the more so on a busy machine, but nobody waits for a reader: the
    # silent one has read nothing for as long as there are probes, each of which would fail in the end.
    assert beside_s < 5 * alone_s + 30

    def nothing_is_open() -> bool:
        metrics = httpx.get(server.url + "/metrics", timeout=60).text
        return 'inferflux_streams_open{model="stub"} 0.0' in metrics

    await asyncio.to_thread(server.wait_until, "both are forgotten", nothing_is_open)


async def _probe(server: Server) -> float:
    """The slowest of ten short streams, one after the other, each of them whole."""
    took = []
    async with crowd() as clients:
        for number in range(10):
            outcome = await clients.ask(server.url, f"probe {number}", 10)
            outcome.assert_exact()
            took.append(outcome.ended_s - outcome.started_s)
    return max(took)


def _ask_without_reading(server: Server, num_tokens: int) -> socket.socket:
    """A stream's socket with the smallest buffer there is; only the request was sent."""
    at = urlsplit(server.url)
    body = json.dumps(
        {
            "model": "stub",
            "prompt": "A long story",
            "max_tokens": num_tokens,
            "n": NUM_CHOICES,
            "ignore_eos": True,
            "logprobs": 5,
            "stream": True,
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {at.netloc}\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((at.hostname, at.port))
    client.sendall(head.encode() + body)
    return client


def _read_slowly(client: socket.socket, stop: threading.Event) -> None:
    """One byte a second."""
    while not stop.wait(1.0):
        client.recv(1)
