"""The stages of a request's way, each timed alone against the running server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import msgspec
from load import percentile

from inferflux.broker.broker import LaneLimits, Reply
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.broker.wire.requests import Claim
from inferflux.config.settings import BrokerSettings, Settings

LANE = Lane("benchmark", ServiceClass.DEFAULT, "bench")
LIMITS = LaneLimits(max_running=64, lease_s=30.0, idle_s=300.0)
BODY = b"x" * 500

T = TypeVar("T")


class Stage(msgspec.Struct, frozen=True):
    """Milliseconds that one stage takes."""

    name: str
    p50_ms: float
    p99_ms: float


class Stages(msgspec.Struct, frozen=True):
    stages: tuple[Stage, ...]


async def measure_stages(store_dir: Path, num_samples: int = 200) -> Stages:
    """Store a prompt, pull it, claim it, send a frame to its reader, end it, acknowledge it: one at a time."""
    settings = Settings(broker=BrokerSettings(store_dir=str(store_dir)))
    api = await JetStreamBroker.connect(settings, "api", "benchmark-api")
    worker = await JetStreamBroker.connect(settings, "worker", "benchmark-worker")
    times: dict[str, list[float]] = {}
    arrived: asyncio.Queue[Reply] = asyncio.Queue()
    await api.listen_replies("a-benchmark", arrived.put_nowait)

    async def timed(name: str, work: Awaitable[T]) -> T:
        started_s = time.perf_counter()
        result = await work
        times.setdefault(name, []).append((time.perf_counter() - started_s) * 1000)
        return result

    async def relay(key: RequestKey) -> None:
        ack = worker.send_frame(key, BODY[:200])
        await arrived.get()
        await ack

    for number in range(num_samples):
        key = RequestKey("a-benchmark", f"r{number}")
        store = api.publish_prompt(LANE, BODY, msg_id=key.request)
        await timed("store the prompt (synchronous write)", store)
        delivery = await timed("pull it", worker.pull(LANE, LIMITS))
        assert delivery is not None
        claim = Claim(worker="benchmark", prompt=delivery.seq)
        fence = await timed("claim it", worker.put_claim(key, claim, expected_seq=0))
        await timed("a frame through the tape to its reader", relay(key))
        await timed("fenced terminal frame", worker.put_terminal(key, b"{}", fence=fence))
        await arrived.get()
        await timed("acknowledge the prompt", delivery.ack())
        await worker.purge_tape(key)
    await api.close()
    await worker.close()
    return Stages(tuple(Stage(name, percentile(each, 0.5), percentile(each, 0.99)) for name, each in times.items()))
