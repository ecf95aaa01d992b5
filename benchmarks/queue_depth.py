"""How deep a queue may be: the time from a free slot to the next prompt, beside an empty queue and behind a deep one.

    python benchmarks/queue_depth.py [--prompts 100000] [--tenants 1000] [--pulls 3000] [--sync always]
                                     [--json FILE]

One real nats-server, one stream, and the worker's own choice (fair share) and pull. "Empty" is
one tenant with two prompts waiting, "deep" all of the prompts spread over all of the tenants. A lane's first pull
makes its consumer, and is counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import msgspec
import psutil
import uvloop
from load import percentile
from rich.console import Console
from rich.table import Table

from inferflux.broker.broker import LaneLimits
from inferflux.broker.credentials import ROLE_ADMIN
from inferflux.broker.embedded import EmbeddedServer
from inferflux.broker.errors import QueueFull
from inferflux.broker.fairshare import FairShare
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import Lane, ServiceClass
from inferflux.config.settings import BrokerSettings, FairnessSettings, QueueSettings, Settings

MODEL = "m"
LIMITS = LaneLimits(max_running=256, lease_s=600.0, idle_s=600.0)
BODY = b'{"type":"completion","id":"x","prompt":"%s","max_tokens":64}' % (b"word " * 60)
NUM_PUBLISHERS = 256
NUM_OUTPUT = 64


class Depth(msgspec.Struct, frozen=True):
    """One state of the queue: milliseconds from a free slot to a pulled prompt, and the server's memory."""

    name: str
    num_prompts: int
    num_tenants: int
    pull_p50_ms: float
    pull_p99_ms: float
    first_p50_ms: float
    first_p99_ms: float
    resync_ms: float
    rss_mb: float
    num_consumers: int
    published_per_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--tenants", type=int, default=1_000)
    parser.add_argument("--pulls", type=int, default=3_000)
    parser.add_argument("--sync", default="always", help="the server's sync_interval; filling the queue waits for it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        depths = uvloop.run(_measure(Path(folder), arguments))
    _print(depths)
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(depths)))


async def _measure(folder: Path, arguments: argparse.Namespace) -> list[Depth]:
    num_prompts, num_tenants, num_pulls = arguments.prompts, arguments.tenants, arguments.pulls
    settings = Settings(
        broker=BrokerSettings(store_dir=str(folder), port=0, timeout_s=30.0, sync_interval=arguments.sync),
        queue=QueueSettings(
            max_msgs_per_subject=max(1_000, 2 * num_prompts // num_tenants), max_lanes=max(900, num_tenants + 10)
        ),
    )
    server = EmbeddedServer(settings)
    await server.start()
    broker = await JetStreamBroker.connect(settings, ROLE_ADMIN, "benchmark")
    try:
        queue = Queue(broker, server)
        return [await queue.empty(num_pulls), await queue.deep(num_prompts, num_tenants, num_pulls)]
    finally:
        await broker.close()
        await server.stop()


class Queue:
    """Prompts in one stream, and a worker with one slot that takes them as fairness says."""

    def __init__(self, broker: JetStreamBroker, server: EmbeddedServer) -> None:
        self._broker = broker
        self._server = server
        self._num_published = 0

    async def empty(self, num_pulls: int) -> Depth:
        lane = Lane(MODEL, ServiceClass.DEFAULT, "only")
        started_s = time.perf_counter()
        await self._publish([lane] * 2)
        return await self._pull("empty", {lane: 2}, num_pulls, 2 / (time.perf_counter() - started_s), refill=True)

    async def deep(self, num_prompts: int, num_tenants: int, num_pulls: int) -> Depth:
        lanes = [Lane(MODEL, ServiceClass.DEFAULT, f"tenant-{number}") for number in range(num_tenants)]
        started_s = time.perf_counter()
        await self._publish([lanes[number % num_tenants] for number in range(num_prompts)])
        rate = num_prompts / (time.perf_counter() - started_s)
        waiting = dict.fromkeys(lanes, num_prompts // num_tenants)
        return await self._pull("deep", waiting, num_pulls + num_tenants, rate, refill=False)

    async def _publish(self, lanes: list[Lane]) -> None:
        remaining = iter(lanes)

        async def publisher() -> None:
            for lane in remaining:
                self._num_published += 1
                try:
                    await self._broker.publish_prompt(lane, BODY, msg_id=str(self._num_published))
                except QueueFull as error:
                    raise RuntimeError("max_msgs_per_subject is too small for these numbers") from error

        await asyncio.gather(*(publisher() for _ in range(min(NUM_PUBLISHERS, len(lanes)))))

    async def _pull(
        self, name: str, waiting: dict[Lane, int], num_pulls: int, published_per_s: float, *, refill: bool
    ) -> Depth:
        fair = FairShare(MODEL, "w", "e", FairnessSettings())
        now_s = time.monotonic()
        while not fair.ready(time.monotonic()):
            fair.gossip(time.monotonic(), 1, "cpu")
            await asyncio.sleep(0.1)
        for lane, number in waiting.items():
            fair.set_backlog(lane, number, now_s)
        num_prompts = sum(waiting.values())
        firsts: list[float] = []
        pulls: list[float] = []
        seen: set[Lane] = set()
        for _ in range(num_pulls):
            started_s = time.perf_counter()
            chosen = fair.choose(time.monotonic())
            if chosen is None:
                break
            delivery = await self._broker.pull(chosen, LIMITS)
            took_ms = 1000 * (time.perf_counter() - started_s)
            assert delivery is not None, "what was published is there"
            (pulls if chosen in seen else firsts).append(took_ms)
            seen.add(chosen)
            fair.charge(chosen, num_input=60, num_output=NUM_OUTPUT, now_s=time.monotonic())
            await delivery.ack()
            if refill:
                await self._publish([chosen])
            fair.set_backlog(chosen, delivery.num_pending + refill, time.monotonic())
        started_s = time.perf_counter()
        await self._broker.backlog(MODEL)
        return Depth(
            name=name,
            num_prompts=num_prompts,
            num_tenants=len(waiting),
            pull_p50_ms=percentile(pulls, 0.5),
            pull_p99_ms=percentile(pulls, 0.99),
            first_p50_ms=percentile(firsts, 0.5),
            first_p99_ms=percentile(firsts, 0.99),
            resync_ms=1000 * (time.perf_counter() - started_s),
            rss_mb=psutil.Process(self._server.pid).memory_info().rss / 1e6,
            num_consumers=len(seen),
            published_per_s=published_per_s,
        )


def _print(depths: list[Depth]) -> None:
    table = Table(
        "queue", "prompts", "tenants", "pull p50", "p99", "first pull p50", "p99", "resync", "server", "published"
    )
    for each in depths:
        table.add_row(
            each.name,
            f"{each.num_prompts:,}",
            f"{each.num_tenants:,}",
            f"{each.pull_p50_ms:.2f} ms",
            f"{each.pull_p99_ms:.2f} ms",
            f"{each.first_p50_ms:.2f} ms",
            f"{each.first_p99_ms:.2f} ms",
            f"{each.resync_ms:.1f} ms",
            f"{each.rss_mb:.0f} MB",
            f"{each.published_per_s:,.0f}/s",
        )
    console = Console()
    console.print(table)
    empty, deep = depths
    console.print(f"p99 deep / empty: {deep.pull_p99_ms / empty.pull_p99_ms:.2f}")


if __name__ == "__main__":
    main()
