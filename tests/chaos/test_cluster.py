"""Three NATS nodes, and the one that leads a stream is killed under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.conftest import Scale
from harness.crowd import Outcome, crowd
from harness.nats import NatsServers
from harness.server import Server, running_server, tenants

from inferflux.broker.subjects import STREAM_PROMPTS, STREAM_TAPE
from inferflux.config.settings import Settings

pytestmark = [pytest.mark.integration, pytest.mark.cluster]


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory, scale: Scale) -> Iterator[NatsServers]:
    if not scale.long:
        pytest.skip("the long form, scripts/chaos.sh; tests/e2e/test_cluster.py kills a leader in the short one")
    servers = NatsServers(tmp_path_factory.mktemp("nats"), Settings(tenants=tenants()), num_nodes=3)
    servers.start_all()
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def server(nats: NatsServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        "broker": {"replicas": 3},
        "runtime": {"scheduler": {"max_batch_size": 32}, "stub": {"step_s": 0.06}},
    }
    store = Path(nats.settings.broker.store_dir)
    folder = tmp_path_factory.mktemp("cluster")
    with running_server(folder, num_replicas=2, num_workers=2, settings=settings, nats_dir=store) as server:
        yield server


@pytest.mark.timeout(0)
async def test_kill_9_of_the_leader_loses_no_accepted_prompt(server: Server, nats: NatsServers, scale: Scale) -> None:
    """Fails when a prompt counts as accepted before a majority has stored it, and when a worker gives a request up
    because the broker was away for a moment."""
    for number in range(scale.rounds):
        for stream in (STREAM_PROMPTS, STREAM_TAPE):
            async with crowd() as clients:
                prompts = [f"{stream} {number} prompt {each}" for each in range(16)]
                running = asyncio.create_task(clients.all(server.urls, prompts, 40))
                await asyncio.to_thread(server.wait_until, "they run", lambda: _num_running(server) >= 8)
                leader = await nats.leader(stream)
                nats.kill(leader)
                # These are sent while there is no leader: each is either refused, or kept.
                asking: list[asyncio.Task[Outcome]] = []
                until_s = time.monotonic() + 3
                while time.monotonic() < until_s:
                    url = server.urls[len(asking) % 2]
                    asking.append(asyncio.create_task(clients.ask(url, f"{stream} {number} late {len(asking)}", 10)))
                    await asyncio.sleep(0.1)
                outcomes = [*await running, *await asyncio.gather(*asking)]
                nats.start(leader)
            for outcome in outcomes[: len(prompts)]:
                outcome.assert_exact()
            for outcome in outcomes[len(prompts) :]:
                if outcome.status != 503:
                    outcome.assert_exact()
            await asyncio.to_thread(server.wait_ready, 2)


def _num_running(server: Server) -> int:
    return sum(int(model.get("num_running", 0)) for beat in server.workers() for model in beat["models"])
