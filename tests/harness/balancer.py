"""A load balancer as simple as they come: connections go to replicas that say that they are ready, in turn."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx

CHECK_S = 0.2


class Balancer:
    """Passes bytes, and knows nothing of what they mean. One failed look at `/readyz` takes a replica out."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._ready = dict.fromkeys(urls, True)
        self._turns = itertools.count()

    async def check(self, client: httpx.AsyncClient) -> None:
        for url in self._ready:
            try:
                self._ready[url] = (await client.get(url + "/readyz", timeout=2)).status_code == 200
            except httpx.HTTPError:
                self._ready[url] = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to the next replica that takes it."""
        ready = [url for url, good in self._ready.items() if good] or list(self._ready)
        turn = next(self._turns) % len(ready)
        for url in ready[turn:] + ready[:turn]:
            at = urlsplit(url)
            try:
                there_reader, there_writer = await asyncio.open_connection(at.hostname, at.port)
            except OSError:
                continue
            await asyncio.gather(_pass(reader, there_writer), _pass(there_reader, writer))
            return
        writer.close()


@asynccontextmanager
async def balancing(urls: Sequence[str]) -> AsyncIterator[str]:
    """The URL of a balancer in front of the replicas."""
    balancer = Balancer(urls)
    server = await asyncio.start_server(balancer.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()

    async def check_forever() -> None:
        async with httpx.AsyncClient() as client:
            while True:
                await balancer.check(client)
                await asyncio.sleep(CHECK_S)

    checking = asyncio.create_task(check_forever())
    try:
        yield f"http://{host}:{port}"
    finally:
        checking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await checking
        server.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()
