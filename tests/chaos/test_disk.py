"""The disk under NATS runs full, and is cleared again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.crowd import crowd
from harness.disk import SmallDiskNats, can_mount
from harness.fleet import deadline
from harness.server import Server, running_server, tenants

from inferflux.broker.errors import Code
from inferflux.config.settings import Settings

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not can_mount(), reason="a small disk needs root and a mount namespace"),
]


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDiskNats]:
    servers = SmallDiskNats(tmp_path_factory.mktemp("disk") / "nats", Settings(tenants=tenants()))
    servers.start_all()
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def server(nats: SmallDiskNats, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = Path(nats.settings.broker.store_dir)
    # JetStream sets a stream's bound aside when it is created: the queue's must fit the small disk.
    settings = {"queue": {"max_bytes": 64 * 1024 * 1024, "dead_max_bytes": 8 * 1024 * 1024}}
    with running_server(tmp_path_factory.mktemp("full"), nats_dir=store, settings=settings) as server:
        yield server


async def test_a_full_disk_is_a_503_and_recovers_by_clearing_it_and_restarting_nats(
    server: Server, nats: SmallDiskNats
) -> None:
    """Fails when a prompt counts as accepted before the stream has stored it. nats-server 2.15 goes on refusing to
    store after the disk was cleared, until it is restarted."""
    async with crowd() as clients:
        (await clients.ask(server.url, "before", 10)).assert_exact()
        nats.fill()
        # What the file system has set aside for the newest file may still take a few.
        refused = None
        for number in range(20):
            outcome = await clients.ask(server.url, f"{number} " + "long " * 1000, 1)
            if outcome.status != 200:
                refused = outcome
                break
            outcome.assert_exact()
        assert refused is not None
        assert (refused.status, refused.error) == (503, Code.BROKER_UNAVAILABLE)
        nats.clear()
        nats.stop()
        nats.start()
        async with deadline(20, "a request is answered again"):
            while (outcome := await clients.ask(server.url, "after", 10)).status == 503:
                await asyncio.sleep(0.1)
        outcome.assert_exact()
    queue = server.get("/v1/admin/queue").json()
    assert not queue["data"], "what was refused was stored all the same"
