"""Streams follow the settings, and their bounds hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.nats import NatsServers, settings_for_tests
from harness.world import LIMITS, WAIT_S, World

from inferflux.broker import topology
from inferflux.broker.errors import ConfigError, QueueFull, TapeFull, TooManyLanes
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.jetstream_api import JetStreamApi
from inferflux.broker.link import Link
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.broker.wire.requests import Claim
from inferflux.config.settings import BrokerSettings, QueueSettings, Settings, TapeSettings

KEY = RequestKey("a-1", "r")
SMALL = settings_for_tests(
    broker=BrokerSettings(timeout_s=WAIT_S),
    queue=QueueSettings(max_msgs_per_subject=2, max_lanes=2, max_bytes=64 * 1024),
    tape=TapeSettings(max_bytes=64 * 1024, ack_timeout_s=WAIT_S),
)


def lane(tenant: str) -> Lane:
    return Lane("m", ServiceClass.DEFAULT, tenant)


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.integration)])
async def small(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world with room for two prompts a lane, two lanes, and 64 KiB of queue and of tape."""
    servers = None
    if request.param == "nats":
        servers = NatsServers(tmp_path / "nats", SMALL)
        servers.start_all()
    world = World(SMALL if servers is None else servers.settings, servers)
    yield world
    await world.close()
    if servers is not None:
        servers.close()


async def test_full_queue_refuses_whatever_the_lane(small: World) -> None:
    api = await small.broker("api")
    first = await api.publish_prompt(lane("a"), b"x" * 40_000, msg_id="1")
    with pytest.raises(QueueFull):
        await api.publish_prompt(lane("b"), b"x" * 40_000, msg_id="2")
    await api.drop_prompt(first.seq)
    await api.publish_prompt(lane("b"), b"x" * 40_000, msg_id="2")


async def test_full_lane_refuses_until_one_is_done(small: World) -> None:
    api, worker = await small.broker("api"), await small.broker("worker")
    for number in range(2):
        await api.publish_prompt(lane("a"), b"", msg_id=str(number))
    with pytest.raises(QueueFull):
        await api.publish_prompt(lane("a"), b"", msg_id="2")
    await api.publish_prompt(lane("b"), b"", msg_id="3")
    held = await small.pull(worker, lane("a"))
    with pytest.raises(QueueFull):
        await api.publish_prompt(lane("a"), b"", msg_id="4")
    await held.ack()
    await api.publish_prompt(lane("a"), b"", msg_id="4")


async def test_a_duplicate_is_told_even_when_the_lane_is_full(small: World) -> None:
    api = await small.broker("api")
    for number in range(2):
        await api.publish_prompt(lane("a"), b"", msg_id=str(number))
    assert (await api.publish_prompt(lane("a"), b"", msg_id="0")).duplicate


async def test_over_the_cap_a_new_lane_is_refused(small: World) -> None:
    worker = await small.broker("worker")
    # Long enough for what is tried before that lane goes.
    limits = msgspec.structs.replace(LIMITS, idle_s=4.0)
    await worker.pull(lane("a"), LIMITS)
    await worker.pull(lane("b"), limits)
    for _ in range(2):
        with pytest.raises(TooManyLanes):
            await worker.pull(lane("c"), LIMITS)
    # A lane that is there stays open, to a worker that joins as well.
    await worker.pull(lane("a"), LIMITS)
    await (await small.broker("worker")).pull(lane("a"), LIMITS)
    async with asyncio.timeout(WAIT_S):
        while True:
            await small.elapse(0.5)
            try:
                await worker.pull(lane("c"), LIMITS)
                break
            except TooManyLanes:
                continue


async def test_full_tape_refuses_frames_claims_and_ends(small: World) -> None:
    worker = await small.broker("worker")
    fence = await worker.put_claim(KEY, Claim(worker="w"), expected_seq=0)
    sent = [worker.send_frame(KEY, b"x" * 1000) for _ in range(100)]
    results = await asyncio.gather(*sent, return_exceptions=True)
    stored = [each for each in results if isinstance(each, int)]
    assert 50 <= len(stored) <= 64
    assert {type(each) for each in results[len(stored) :]} == {TapeFull}
    assert await worker.tape_fill() > 0.9
    with pytest.raises(TapeFull):
        await worker.put_terminal(KEY, b"x" * 1000, fence=fence)
    with pytest.raises(TapeFull):
        await worker.put_claim(RequestKey("a-1", "s" * 180), Claim(worker="w" * 1000), expected_seq=0)
    await worker.purge_tape(KEY)
    await worker.send_frame(KEY, b"x")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServers]:
    servers = NatsServers(tmp_path / "nats", settings_for_tests())
    servers.start_all()
    yield servers
    servers.close()


async def config(servers: NatsServers, stream: str) -> dict[str, Any]:
    link = Link(servers.connection("admin"), name="test", timeout_s=WAIT_S)
    await link.open(WAIT_S)
    info = await JetStreamApi(link, timeout_s=WAIT_S).call("STREAM", "INFO", stream)
    await link.close()
    return dict(info["config"])


@pytest.mark.integration
async def test_streams_follow_changed_settings(server: NatsServers) -> None:
    async with server.broker("api"):
        before = await config(server, "PROMPTS")
    changed: Settings = msgspec.structs.replace(
        server.settings,
        queue=msgspec.structs.replace(server.settings.queue, max_msgs_per_subject=7),
        tape=msgspec.structs.replace(server.settings.tape, max_bytes=1024 * 1024, max_age_s=60.0),
    )
    async with server.broker("api", changed), server.broker("api", changed):
        after = await config(server, "PROMPTS")
        tape = await config(server, "TAPE")
    assert before | {"max_msgs_per_subject": 7} == after
    assert (tape["max_bytes"], tape["max_age"]) == (1024 * 1024, 60 * 10**9)


@pytest.mark.integration
async def test_the_streams_are_what_the_design_says(server: NatsServers) -> None:
    async with server.broker("api"):
        prompts, tape, limits, usage, workers = [
            await config(server, name) for name in ("PROMPTS", "TAPE", "LIMITS", "USAGE", "KV_workers")
        ]
    assert prompts["retention"] == "workqueue"
    assert prompts["discard"] == "new"
    assert prompts["discard_new_per_subject"]
    assert prompts["storage"] == "file"
    assert prompts["max_age"] == 0
    assert not prompts.get("allow_msg_ttl")
    assert prompts["max_consumers"] > server.settings.queue.max_lanes
    assert tape["storage"] == "memory"
    assert tape["republish"] == {
        "src": "inferflux.tape.*.*.frame",
        "dest": "inferflux.reply.{{wildcard(1)}}.{{wildcard(2)}}",
    }
    assert limits["allow_msg_counter"]
    assert limits["storage"] == "memory"
    assert usage["allow_msg_counter"]
    assert usage["storage"] == "file"
    assert usage["max_age"] > 31 * 24 * 3600 * 10**9, "a month's budget is forgotten before the month is over"
    assert workers["allow_msg_ttl"]


@pytest.mark.integration
async def test_what_a_single_server_cannot_do_is_explained(server: NatsServers) -> None:
    broker = msgspec.structs.replace(server.settings.broker, replicas=3)
    with pytest.raises(ConfigError, match=r"broker\.replicas is 3"):
        await JetStreamBroker.connect(msgspec.structs.replace(server.settings, broker=broker), "api", "test")
    tape = msgspec.structs.replace(server.settings.tape, max_bytes=10**12)
    with pytest.raises(ConfigError, match=r"tape\.max_bytes"):
        await JetStreamBroker.connect(msgspec.structs.replace(server.settings, tape=tape), "api", "test")


def test_every_stream_names_its_replicas() -> None:
    broker = msgspec.structs.replace(SMALL.broker, replicas=3)
    assert {each.num_replicas for each in topology.streams(msgspec.structs.replace(SMALL, broker=broker))} == {3}
