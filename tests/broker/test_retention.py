"""Dead letters are kept within their bounds, the newest of them, in memory and on a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.nats import NatsServers, settings_for_tests
from harness.world import World

from inferflux.broker.subjects import BUCKET_DEADLETTERS
from inferflux.config.settings import QueueSettings

SMALL = settings_for_tests(queue=QueueSettings(dead_max_letters=3, dead_max_bytes=4000, dead_max_age_s=2.0))


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.integration)])
async def small(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world that keeps three dead letters of together 4 kB for two seconds."""
    servers = None
    if request.param == "nats":
        servers = NatsServers(tmp_path / "nats", SMALL)
        servers.start_all()
    world = World(SMALL if servers is None else servers.settings, servers)
    yield world
    await world.close()
    if servers is not None:
        servers.close()


async def test_the_oldest_go_first(small: World) -> None:
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


async def test_the_old_go(small: World) -> None:
    bucket = await (await small.broker("api")).bucket(BUCKET_DEADLETTERS)
    await bucket.put("t-acme.r", b"letter")
    await small.elapse(1.0)
    assert await bucket.get("t-acme.r") is not None
    await small.elapse(1.5)
    assert await bucket.get("t-acme.r") is None
