"""Mixed load for an hour: memory stays where it is, and what was taken is given back."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from chaos.conftest import Scale
from harness.crowd import Crowd, crowd
from harness.server import Server, running_server

from inferflux.broker.credentials import ROLE_ADMIN, resolve
from inferflux.broker.jetstream_api import JetStreamApi
from inferflux.broker.link import Link
from inferflux.broker.subjects import STREAM_PROMPTS, STREAM_TAPE
from inferflux.config.settings import BrokerSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(0)]

IDLE_S = 5.0
HOUR_S = 3600.0
SETTLE_S = 30.0
"""How long after the load pages, consumers and the tape may take to be given back."""


@pytest.fixture
def server(tmp_path: Path, scale: Scale) -> Iterator[Server]:
    if not scale.soak_s:
        pytest.skip("scripts/chaos.sh --soak runs it")
    settings = {
        "runtime": {"scheduler": {"max_batch_size": 16}, "stub": {"step_s": 0.01}},
        "queue": {"lane_idle_s": IDLE_S},
        "tape": {"window_s": 5.0},
        "streams": {"resume_grace_s": 2.0, "idempotency_ttl_s": 60.0},
    }
    with running_server(tmp_path / "soak", num_replicas=2, num_workers=2, settings=settings) as server:
        yield server


async def test_an_hour_of_mixed_load_leaves_nothing_behind(server: Server, scale: Scale) -> None:
    """Memory grows by at most 1 % an hour over the last half; a shorter soak reports and does not judge."""
    samples: dict[str, list[tuple[float, int]]] = defaultdict(list)
    async with _api(server) as api, crowd() as clients:
        before = await _held(api, server)
        until_s = time.monotonic() + scale.soak_s
        load = asyncio.create_task(_arrive(clients, server, until_s, scale.soak_rate))
        while not load.done():
            _sample(server, samples)
            await asyncio.wait({load}, timeout=min(5.0, scale.soak_s / 20))
        num_answers = await load
        cpu_s = sum(sum(child.cpu_times()[:2]) for child in server.children())
        settled_s = time.monotonic() + SETTLE_S
        while (after := await _held(api, server)) != before and time.monotonic() < settled_s:
            await asyncio.sleep(0.5)
    assert num_answers
    print(f"{num_answers} answers, {100 * cpu_s / scale.soak_s:.0f} % of a core; held before {before}, after {after}")
    assert after == before, "not everything that was taken was given back"
    slopes = {name: _slope(points[len(points) // 2 :]) for name, points in samples.items()}
    for name, points in samples.items():
        sizes = ", ".join(f"{points[len(points) * part // 6][1] / 1e6:.1f}" for part in range(6))
        print(f"{name}: {sizes}, {points[-1][1] / 1e6:.1f} MB, {slopes[name]:+.1f} %/h over the last half")
    if scale.soak_s >= HOUR_S:
        assert max(slopes.values()) <= 1, slopes


async def _arrive(clients: Crowd, server: Server, until_s: float, rate: float) -> int:
    """Requests that come whether or not those before them have been answered. Returns how many came."""
    async with asyncio.TaskGroup() as group:
        for number in itertools.count(1):
            group.create_task(_use(clients, server.urls[:: 1 if number % 2 else -1], number))
            await asyncio.sleep(random.expovariate(rate))
            if time.monotonic() > until_s:
                return number
    raise AssertionError("the numbers ran out")


async def _use(clients: Crowd, urls: list[str], number: int) -> None:
    """A stream, a whole answer, one under an idempotency key, or one that its client leaves, of many lengths."""
    num_tokens = 1 + number % 60
    prompt = f"request {number} " + "word " * (number % 40)
    match number % 4:
        case 0:
            await clients.ask_whole(urls[0], prompt, num_tokens)
        case 1:
            (await clients.ask(urls[0], prompt, num_tokens)).assert_exact()
        case 2:
            (await clients.insist(urls, prompt, num_tokens)).assert_exact()
        case 3:
            leaving = asyncio.create_task(clients.ask(urls[0], prompt, 64))
            await asyncio.sleep(0.2)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
    clients.outcomes.clear()


def _sample(server: Server, samples: dict[str, list[tuple[float, int]]]) -> None:
    for child in server.children():
        arguments = child.cmdline()
        name = next((each for each in arguments if each.startswith("inferflux.")), Path(arguments[0]).name)
        samples[f"{name} {child.pid}"].append((time.monotonic(), child.memory_info().rss))


def _slope(points: list[tuple[float, int]]) -> float:
    """Percent of the mean, an hour."""
    if len(points) < 2:
        return 0.0
    times, sizes = zip(*points, strict=True)
    slope = statistics.linear_regression(times, sizes).slope
    return 100 * slope * HOUR_S / statistics.fmean(sizes)


async def _held(api: JetStreamApi, server: Server) -> dict[str, int]:
    """Pages, prompts and consumers in use, and clients of the broker."""
    prompts = await api.call("STREAM", "INFO", STREAM_PROMPTS)
    tape = await api.call("STREAM", "INFO", STREAM_TAPE)
    models = [model for beat in server.workers() for model in beat["models"]]
    nats = next(child for child in server.children() if "nats-server" in child.name())
    return {
        "pages": sum(int(model.get("num_pages_used", 0)) for model in models),
        "prompts": int(prompts["state"]["messages"]),
        "consumers": int(prompts["state"]["consumer_count"]) + int(tape["state"]["consumer_count"]),
        "NATS connections": sum(each.status == "ESTABLISHED" for each in nats.net_connections(kind="tcp")),
    }


@asynccontextmanager
async def _api(server: Server) -> AsyncIterator[JetStreamApi]:
    connection = resolve(BrokerSettings(store_dir=str(server.store_dir)), ROLE_ADMIN)
    link = Link(connection, name="soak", timeout_s=5.0)
    await link.open(10.0)
    try:
        yield JetStreamApi(link, timeout_s=5.0)
    finally:
        await link.close()
