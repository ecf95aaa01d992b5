"""Fair share on the real path: HTTP, queue, two workers, and what their clients count."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NamedTuple

import pytest
from chaos.conftest import Scale
from chaos.conftest import scale as scale
from harness.crowd import Crowd, Outcome, crowd
from harness.fleet import Fleet, deadline, fleet_settings
from harness.nats import NatsServers
from harness.server import KEY, TENANT, Server, running_server

from inferflux.broker.broker import Reply
from inferflux.broker.subjects import Lane, ServiceClass, tenant_owner
from inferflux.broker.wire.requests import Usage, decode_frame
from inferflux.config.settings import (
    PagedKVSettings,
    QueueSettings,
    RuntimeSettings,
    SchedulerSettings,
    StubSettings,
    TapeSettings,
    TenantSettings,
)

pytestmark = pytest.mark.integration

NUM_WORKERS = 2
NUM_TOKENS, STEP_S = 64, 0.02
FLOODERS = tuple(f"flood{number}" for number in range(10))
LIGHT, FCFS = "light", "everybody"


class Size(NamedTuple):
    """How many slots each worker has, and how many clients each flooding tenant. In the short form slots come free
    seldom, so that a machine that is busy with something else keeps pace."""

    num_slots: int
    num_clients: int


LONG, SHORT = Size(16, 16), Size(4, 4)


@pytest.fixture(scope="module")
def size(scale: Scale) -> Size:
    return LONG if scale.long else SHORT


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, size: Size) -> Iterator[Server]:
    keys = [{"key": f"key-of-{tenant}", "tenant": tenant} for tenant in (*FLOODERS, LIGHT, FCFS)]
    keys.append({"key": KEY, "tenant": TENANT, "scopes": ["generate", "read", "admin"]})
    settings = {
        "runtime": {"scheduler": {"max_batch_size": size.num_slots}, "stub": {"step_s": STEP_S}},
        "auth": {"api_keys": keys},
    }
    folder = tmp_path_factory.mktemp("fairness")
    with running_server(folder, num_workers=NUM_WORKERS, settings=settings) as server:
        yield server


async def test_a_light_tenant_waits_for_two_slot_releases_at_most(server: Server, scale: Scale, size: Size) -> None:
    """The bar is in seconds, which need a machine of one's own: the long form. The short form counts the requests that
    were started between a request's acceptance and its own start, which are slot releases that it did not get. There
    it is the median, because a worker that a busy machine keeps from hearing of a request starts others meanwhile."""
    num_requests, quantile = (200, 0.99) if scale.long else (25, 0.5)
    async with crowd() as clients:
        alone = await _ask_one_by_one(clients, server, LIGHT, num_requests)
        async with _flood(clients, server, FLOODERS, size) as ended:
            fair = await _ask_one_by_one(clients, server, LIGHT, num_requests)
        async with _flood(clients, server, (FCFS,), size):
            fcfs = await _ask_one_by_one(clients, server, FCFS, 20 if scale.long else 2)
    starts = _Starts(server)
    num_ahead = _percentile(starts.num_ahead(LIGHT)[num_requests:], quantile)
    num_ahead_fcfs = _percentile(starts.num_ahead(FCFS))
    # When the second slot came free after each request of the light tenant, as the others' clients saw it.
    releases_s = _percentile(
        [sorted(end for end in ended if end > each.started_s)[1] - each.started_s for each in fair]
    )
    alone_s, fair_s, fcfs_s = (_percentile([each.ttft_s for each in outcomes]) for outcomes in (alone, fair, fcfs))
    report = (
        f"started first, {quantile:.0%} quantile: {num_ahead}, FCFS {num_ahead_fcfs}; TTFT p99: alone {alone_s:.3f} s, "
        f"fair {fair_s:.3f}, FCFS {fcfs_s:.3f}; two slot releases: {releases_s:.3f}"
    )
    print(report)
    assert num_ahead <= 2, report
    assert num_ahead_fcfs >= 10 * max(1, num_ahead), report
    if scale.long:
        assert fair_s <= alone_s + releases_s, report
        assert fcfs_s >= 10 * fair_s, report


async def test_weights_of_4_to_1_are_served_4_to_1(nats: NatsServers, scale: Scale) -> None:
    tenants = (TenantSettings(id="heavy", weight=4.0), TenantSettings(id="normal"))
    # Each of 8 slots holds 16 tokens of prompt and 16 of output.
    bound = 2 * 2 * NUM_WORKERS * SMALL_SLOTS * 32
    multiple = 200 if scale.long else 8
    async with _small_fleet(nats, tenants) as fleet:
        served = await _served_to(fleet, {"heavy": (16, 16), "normal": (16, 16)}, until=("normal", multiple * bound))
    ratio = served["heavy"] / served["normal"]
    print(f"{served['heavy']} to {served['normal']} weighted tokens, {multiple} times the bound: {ratio:.3f}")
    assert ratio == pytest.approx(4, rel=0.01 if scale.long else 1 / multiple)


async def test_ten_equal_tenants_of_different_lengths_are_served_alike(nats: NatsServers, scale: Scale) -> None:
    tenants = tuple(TenantSettings(id=f"equal{number}") for number in range(10))
    shapes = {tenant.id: (8 + 8 * number, 40 - 4 * number) for number, tenant in enumerate(tenants)}
    target = 60_000 if scale.long else 4_000
    async with _small_fleet(nats, tenants) as fleet:
        served = await _served_to(fleet, shapes, until=("equal0", target))
    values = [served[tenant] for tenant in shapes]
    jain = sum(values) ** 2 / (len(values) * sum(value * value for value in values))
    print(f"served {values}: Jain's index {jain:.4f}")
    assert jain >= 0.99


SMALL_SLOTS = 4


@asynccontextmanager
async def _small_fleet(nats: NatsServers, tenants: tuple[TenantSettings, ...]) -> AsyncIterator[Fleet]:
    """Two fast workers of four slots: the bound of the policy grows with what the slots hold."""
    settings = fleet_settings(
        tenants=tenants,
        runtime=RuntimeSettings(
            scheduler=SchedulerSettings(max_batch_size=SMALL_SLOTS),
            paged_kv=PagedKVSettings(cpu_pages=SMALL_SLOTS * 8),
            stub=StubSettings(step_s=0.002),
        ),
        queue=QueueSettings(lease_s=15.0),
        tape=TapeSettings(max_bytes=32 * 1024 * 1024, window_s=0.5),
    )
    async with Fleet(nats, settings) as fleet:
        for _ in range(NUM_WORKERS):
            await fleet.start_worker()
        yield fleet


async def _served_to(fleet: Fleet, shapes: dict[str, tuple[int, int]], *, until: tuple[str, int]) -> dict[str, int]:
    """Keep every tenant's lane full of prompts of its shape (prompt and output tokens) until one tenant was served
    that much; the weighted tokens of each, as the answers say."""
    served: Counter[str] = Counter()
    # As many as are published while a busy machine lets nobody publish.
    free = {tenant: asyncio.Semaphore(240 // len(shapes)) for tenant in shapes}
    target = asyncio.Event()

    def on_reply(tenant: str, reply: Reply) -> None:
        usage = decode_frame(reply.body).usage
        if usage is None:
            return
        free[tenant].release()
        if not target.is_set():
            served[tenant] += _weighted(usage)
            if served[until[0]] >= until[1]:
                target.set()

    async def keep_full(tenant: str, num_prompt: int, num_output: int) -> None:
        lane = Lane(fleet.model, ServiceClass.DEFAULT, tenant)
        for number in itertools.count():
            await free[tenant].acquire()
            prompt = f"{number:06}{tenant}".ljust(num_prompt, "x")[:num_prompt]
            await fleet.publish(num_output, lane=lane, prompt=prompt)

    for tenant in shapes:
        await fleet.client.listen_replies(tenant_owner(tenant), lambda reply, tenant=tenant: on_reply(tenant, reply))
    filling = [asyncio.create_task(keep_full(tenant, *shape)) for tenant, shape in shapes.items()]
    try:
        async with deadline(3600, "all that was to be served"):
            await target.wait()
    finally:
        for task in filling:
            task.cancel()
        await asyncio.gather(*filling, return_exceptions=True)
    return dict(served)


def _weighted(usage: Usage) -> int:
    return usage.prompt_tokens - usage.cached_tokens + 2 * usage.completion_tokens


async def _ask_one_by_one(clients: Crowd, server: Server, tenant: str, num_requests: int) -> list[Outcome]:
    outcomes = []
    for number in range(num_requests):
        outcome = await clients.ask(server.url, f"{tenant} {number}", 4, key=f"key-of-{tenant}")
        outcome.assert_exact()
        outcomes.append(outcome)
    return outcomes


@asynccontextmanager
async def _flood(clients: Crowd, server: Server, tenants: tuple[str, ...], size: Size) -> AsyncIterator[list[float]]:
    """As many clients, whoever they belong to; yields, with all slots busy, when each answer ended."""
    ended: list[float] = []
    stop = asyncio.Event()
    num_slots, num_clients = size.num_slots * NUM_WORKERS, len(FLOODERS) * size.num_clients

    async def flood(number: int) -> None:
        # The slots are filled over the length of an answer, so that they come free one after the other.
        await asyncio.sleep(min(number / num_slots, 1) * NUM_TOKENS * STEP_S)
        tenant = tenants[number % len(tenants)]
        while not stop.is_set():
            # Not streamed, so that clients and replica leave the machine to what is measured.
            await clients.ask_whole(server.url, f"{tenant} {number}", NUM_TOKENS, key=f"key-of-{tenant}")
            ended.append(time.monotonic())

    flooding = [asyncio.create_task(flood(number)) for number in range(num_clients)]
    try:
        async with deadline(180, "the flood stands"):
            while len(ended) < num_slots:
                await asyncio.sleep(0.05)
        yield ended
    finally:
        stop.set()
        await asyncio.gather(*flooding)


class _Starts:
    """When each request was accepted and first claimed, from the processes' logs (milliseconds)."""

    def __init__(self, server: Server) -> None:
        self._accepted: dict[str, tuple[float, str]] = {}
        self._claimed: dict[str, float] = {}
        for line in server.log_text().splitlines():
            if '"accepted"' not in line and '"claimed"' not in line:
                continue
            entry = json.loads(line)
            at_s, fields = datetime.fromisoformat(entry["ts"]).timestamp(), entry["fields"]
            if entry["event"] == "accepted":
                self._accepted[fields["request"]] = (at_s, fields["tenant"])
            else:
                self._claimed.setdefault(fields["request"], at_s)

    def num_ahead(self, tenant: str) -> list[int]:
        """For each request of a tenant, in order: how many others were claimed while it waited. Those that were
        claimed in the same moment took slots that came free together with its own."""
        return [
            sum(accepted_s < other_s < self._claimed[request] - 0.002 for other_s in self._claimed.values())
            for request, (accepted_s, owner) in self._accepted.items()
            if owner == tenant
        ]


def _percentile(values: Sequence[float], quantile: float = 0.99) -> float:
    return sorted(values)[round(quantile * (len(values) - 1))]
