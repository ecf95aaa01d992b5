"""Dead letters are kept within their bounds, the newest of them, in memory and on a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from harness.nats import NatsServers, settings_for_tests
from harness.world import WAIT_S, World

from inferflux.broker.subjects import BUCKET_DEADLETTERS
from inferflux.config.settings import QueueSettings


@asynccontextmanager
async def running(queue: QueueSettings, path: Path | None) -> AsyncIterator[World]:
    """A world with these bounds, in memory or on a server with a folder of its own."""
    settings = settings_for_tests(queue=queue)
    servers = None
    if path is not None:
        servers = NatsServers(path, settings)
        servers.start_all()
    world = World(settings if servers is None else servers.settings, servers)
    yield world
    await world.close()
    if servers is not None:
        servers.close()


Start = Callable[[QueueSettings], Awaitable[World]]


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.integration)])
async def start(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:
        path = tmp_path / "nats" if request.param == "nats" else None
        yield lambda queue: stack.enter_async_context(running(queue, path))


async def test_the_oldest_go_first(start: Start) -> None:
    small = await start(QueueSettings(dead_max_letters=3, dead_max_bytes=4000))
    bucket = await (await small.broker("api")).bucket(BUCKET_DEADLETTERS)
    for number in range(5):
        await bucket.put(f"t-acme.r{number}", b"letter")
    assert await bucket.keys() == ["t-acme.r2", "t-acme.r3", "t-acme.r4"]

    await bucket.put("t-acme.long1", b"x" * 1500)
    await bucket.put("t-acme.long2", b"x" * 2000)
    kept = await bucket.keys()
    assert kept[-2:] == ["t-acme.long1", "t-acme.long2"]
    await bucket.put("t-acme.long3", b"x" * 2500)
    assert await bucket.keys() == ["t-acme.long3"]


async def test_the_old_go(start: Start) -> None:
    small = await start(QueueSettings(dead_max_age_s=2.0))
    bucket = await (await small.broker("api")).bucket(BUCKET_DEADLETTERS)
    put_s = small.clock()
    await bucket.put("t-acme.r", b"letter")
    async with asyncio.timeout(WAIT_S):
        while await bucket.get("t-acme.r") is not None:
            await small.elapse(0.1)
    assert small.clock() - put_s >= 2.0
