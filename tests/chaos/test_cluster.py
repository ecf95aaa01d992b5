"""Three NATS nodes: the one that leads a stream is killed under load, and everything is restarted under load."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from chaos.conftest import Scale
from harness.balancer import CHECK_S, balancing
from harness.crowd import Crowd, Outcome, crowd
from harness.fleet import stub_text
from harness.nats import NatsServers
from harness.server import KEY, Server, running_server, tenants

from inferflux.broker.subjects import STREAM_PROMPTS, STREAM_TAPE
from inferflux.config.settings import Settings

pytestmark = [pytest.mark.integration, pytest.mark.cluster]

NUM_TOKENS = 20
PAUSE_S = 0.1


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    servers = NatsServers(tmp_path_factory.mktemp("nats"), Settings(tenants=tenants()), num_nodes=3)
    servers.start_all()
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def server(nats: NatsServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        # Elections take their time on a busy machine.
        "broker": {"replicas": 3, "timeout_s": 20.0},
        "runtime": {"scheduler": {"max_batch_size": 32}, "stub": {"step_s": 0.06}},
        # A busy machine looks later than it meant to.
        "server": {"drain_notice_s": 15 * CHECK_S},
    }
    store = Path(nats.settings.broker.store_dir)
    folder = tmp_path_factory.mktemp("cluster")
    with running_server(folder, num_replicas=2, num_workers=2, settings=settings, nats_dir=store) as server:
        yield server


@pytest.mark.timeout(0)
async def test_kill_9_of_the_leader_loses_no_accepted_prompt(server: Server, nats: NatsServers, scale: Scale) -> None:
    """Fails when a prompt counts as accepted before a majority has stored it, and when a worker gives a request up
    because the broker was away for a moment."""
    if not scale.long:
        pytest.skip("the long form, scripts/chaos.sh; tests/e2e/test_cluster.py kills a leader in the short one")
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


@pytest.mark.timeout(0)
async def test_a_rolling_restart_of_everything_fails_no_request(
    server: Server, nats: NatsServers, scale: Scale
) -> None:
    """Fails when a drain counts as a lost worker, when a worker drops what it runs, when a replica refuses before a
    balancer can know, and when a publish is not tried again while a leader is elected."""
    stop = asyncio.Event()
    outcomes: list[Outcome] = []
    texts: list[tuple[str, str | None]] = []
    until_s = time.monotonic() + (scale.load_s if scale.long else 0.0)
    async with crowd() as clients, balancing(server.urls) as url:
        load = [asyncio.create_task(_insist(clients, server, number, stop, outcomes)) for number in range(6)]
        load += [asyncio.create_task(_use_sdk(url, number, stop, texts)) for number in range(4)]
        try:
            while True:
                await _restart_everything(server, nats)
                if time.monotonic() > until_s:
                    break
        finally:
            stop.set()
            done = await asyncio.gather(*load, return_exceptions=True)
    errors = [each for each in done if isinstance(each, BaseException)]
    assert not errors, errors
    moved = [outcome for outcome in outcomes if outcome.num_moves]
    print(f"{len(outcomes)} streams, {len(moved)} of them over several connections; {len(texts)} answers to SDKs")
    assert len(outcomes) > 6
    assert len(texts) > 4
    for outcome in outcomes:
        outcome.assert_exact()
    for prompt, text in texts:
        assert text == stub_text(prompt, NUM_TOKENS)


async def _restart_everything(server: Server, nats: NatsServers) -> None:
    """One process after the other, each when the one before is back, as an operator does."""
    for node in range(nats.num_nodes):
        await asyncio.to_thread(nats.stop, node)
        await asyncio.to_thread(nats.start, node)
        await nats.until_in_step()
    # Not in this thread, where the balancer has to look at replicas.
    for pid in await asyncio.to_thread(server.worker_pids):
        await _restart(server, pid)
    for replica in range(len(server.urls)):
        status = await asyncio.to_thread(server.get, "/v1/admin/status", replica=replica)
        await _restart(server, status.json()["pid"])


async def _restart(server: Server, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    await asyncio.to_thread(server.wait_until, "the process has ended", lambda: not psutil.pid_exists(pid))
    await asyncio.to_thread(server.wait_ready, 2)


async def _insist(clients: Crowd, server: Server, number: int, stop: asyncio.Event, outcomes: list[Outcome]) -> None:
    """Streams that are resumed wherever they broke."""
    while not stop.is_set():
        urls = server.urls if number % 2 else server.urls[::-1]
        prompt = f"insisting {number} request {len(outcomes)}"
        outcomes.append(await clients.insist(urls, prompt, NUM_TOKENS))
        await asyncio.sleep(PAUSE_S)


async def _use_sdk(url: str, number: int, stop: asyncio.Event, texts: list[tuple[str, str | None]]) -> None:
    """What the official SDK gets behind a balancer, streamed and not, without a single retry."""
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        while not stop.is_set():
            prompt = f"sdk {number} request {len(texts)}"
            if len(texts) % 2:
                answer = await client.completions.create(model="stub", prompt=prompt, max_tokens=NUM_TOKENS)
                text = answer.choices[0].text
            else:
                chunks = await client.completions.create(
                    model="stub", prompt=prompt, max_tokens=NUM_TOKENS, stream=True
                )
                text = "".join([chunk.choices[0].text async for chunk in chunks if chunk.choices])
            texts.append((prompt, text))
            await asyncio.sleep(PAUSE_S)


def _num_running(server: Server) -> int:
    return sum(int(model.get("num_running", 0)) for beat in server.workers() for model in beat["models"])
