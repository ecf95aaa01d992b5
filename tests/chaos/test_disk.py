"""The disk under NATS runs full, and is cleared again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from harness.crowd import Crowd, crowd
from harness.disk import SmallDisk, SmallDiskNats, can_mount
from harness.fleet import deadline
from harness.server import Server, running_server, tenants

from inferflux.broker.errors import Code
from inferflux.config.settings import Settings

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not can_mount(), reason="a small disk needs root and a mount namespace"),
]

# JetStream sets a stream's bound aside when it is created: the queue's must fit the small disk.
SETTINGS = {"queue": {"max_bytes": 64 * 1024 * 1024, "dead_max_bytes": 8 * 1024 * 1024}}


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDiskNats]:
    servers = SmallDiskNats(tmp_path_factory.mktemp("disk") / "nats", Settings(tenants=tenants()))
    servers.start_all()
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def server(nats: SmallDiskNats, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = Path(nats.settings.broker.store_dir)
    with running_server(tmp_path_factory.mktemp("full"), nats_dir=store, settings=SETTINGS) as server:
        yield server


async def test_a_full_disk_is_a_503_and_recovers_by_clearing_it_and_restarting_nats(
    server: Server, nats: SmallDiskNats
) -> None:
    """Fails when a prompt counts as accepted before the stream has stored it. nats-server 2.15 goes on refusing to
    store after the disk was cleared, until it is restarted."""
    async with crowd() as clients:
        await _fill(clients, server, nats.disk)
        nats.disk.clear()
        nats.stop()
        nats.start()
        await _recover(clients, server)


async def test_the_embedded_server_recovers_by_itself_once_there_is_room(own_disk: SmallDisk, tmp_path: Path) -> None:
    """Fails when nobody notices that the server has given up storing."""
    with running_server(tmp_path / "serve", settings=SETTINGS, within=own_disk.sees) as server:
        async with crowd() as clients:
            await _fill(clients, server, own_disk)
            own_disk.clear()
            await _recover(clients, server)
        assert "stores nothing" in server.log_text()


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "serve" / "nats")
    yield disk
    disk.close()


async def _fill(clients: Crowd, server: Server, disk: SmallDisk) -> None:
    """Fill the disk, and see a request refused for it."""
    (await clients.ask(server.url, "before", 10)).assert_exact()
    disk.fill()
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


async def _recover(clients: Crowd, server: Server) -> None:
    """A request is answered again, and nothing is left of those that were refused."""
    async with deadline(120, "a request is answered again"):
        while (outcome := await clients.ask(server.url, "after", 10)).status == 503:
            await asyncio.sleep(0.1)
    outcome.assert_exact()
    # The prompt of the last one goes once its answer has been told.
    empty = partial(server.wait_until, "nothing is left", lambda: not server.get("/v1/admin/queue").json()["data"])
    await asyncio.to_thread(empty)
