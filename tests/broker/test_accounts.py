"""Reply subjects, which permissions do not cover: a publisher's are confined to its own account by a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats as nats_py
import pytest
from harness.nats import NatsServers
from harness.world import WAIT_S, WARM_UP, Inbox
from nats.aio.client import Client

from inferflux.broker import subjects
from inferflux.broker.broker import Reply
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import BUCKET_POLICY, KEY_FAIRNESS, Lane, RequestKey, ServiceClass

pytestmark = pytest.mark.integration

VICTIM = RequestKey("t-globex", "job-1")
VICTIM_LANE = Lane("stolen", ServiceClass.PRIORITY, "globex")
FOREIGN = [
    subjects.cancel(VICTIM),
    subjects.claim(VICTIM),
    subjects.frame(VICTIM),
    subjects.head(VICTIM),
    subjects.reply(VICTIM),
    subjects.infer(VICTIM_LANE),
    subjects.kv(BUCKET_POLICY, KEY_FAIRNESS),
    subjects.fair("stolen"),
    "inferflux.limit.tokens.globex.1",
    subjects.js_api("STREAM", "PURGE", "PROMPTS"),
    subjects.js_api("STREAM", "DELETE", "TAPE"),
]


@pytest.fixture(params=["one", pytest.param("three", marks=pytest.mark.cluster)])
def servers(request: pytest.FixtureRequest) -> NatsServers:
    found: NatsServers = request.getfixturevalue("nats" if request.param == "one" else "nats_cluster")
    return found


@asynccontextmanager
async def publisher(servers: NatsServers, node: int = 0) -> AsyncIterator[Client]:
    """A plain nats-py client as the tenant acme, on one node."""
    connection = servers.connection("t-acme")
    client = await nats_py.connect(
        connection.urls[node], inbox_prefix=connection.inbox_prefix.encode(), **connection.options()
    )
    yield client
    await client.close()


class Fleet:
    """What InferFlux itself sees, and what came where nothing should."""

    def __init__(self, api: JetStreamBroker, worker: JetStreamBroker) -> None:
        self.api = api
        self.worker = worker
        self.cancels = Inbox()
        self.replies = Inbox()
        self.gossip = Inbox()

    async def listen(self) -> None:
        await self.worker.listen_cancels(self.cancels.put)
        await self.worker.listen_gossip("stolen", self.gossip.put)
        await self.api.listen_replies(VICTIM.owner, self.replies.put)
        warm_up, body = RequestKey(VICTIM.owner, WARM_UP), WARM_UP.encode()
        async with asyncio.timeout(WAIT_S):
            while not (self.cancels.is_warm and self.gossip.is_warm and self.replies.is_warm):
                await self.api.send_cancel(warm_up)
                await self.worker.send_gossip("stolen", body)
                await self.worker.send_frame(warm_up, body)
                await asyncio.sleep(0.01)
        await self.api.purge_tape(warm_up)

    async def check_untouched(self) -> None:
        """Messages of the test's own come behind all that the server sent before, and must be the first to arrive."""
        last = RequestKey("a-1", "last")
        await self.api.send_cancel(last)
        assert await self.cancels.next(RequestKey) == last
        await self.worker.send_gossip("stolen", b"last")
        assert await self.gossip.next(bytes) == b"last"
        tape = await self.api.read_tape(VICTIM)
        assert (tape.claim, tape.frames) == (None, ())
        assert await self.api.read_head(VICTIM) is None
        assert await self.api.backlog(VICTIM_LANE.model) == {}
        assert await (await self.api.bucket(BUCKET_POLICY)).get(KEY_FAIRNESS) is None
        await self.worker.send_frame(VICTIM, b"last")
        assert (await self.replies.next(Reply)).body == b"last"
        await self.api.purge_tape(VICTIM)


@pytest.fixture
async def fleet(servers: NatsServers) -> AsyncIterator[Fleet]:
    async with servers.broker("api") as api, servers.broker("worker") as worker:
        fleet = Fleet(api, worker)
        await fleet.listen()
        yield fleet


def lane_of(servers: NatsServers, name: str) -> Lane:
    return Lane(f"{name}-{servers.num_nodes}", ServiceClass.DEFAULT, "acme")


async def test_an_acknowledgement_reaches_nobody_else(servers: NatsServers, fleet: Fleet) -> None:
    lane = lane_of(servers, "reply")
    async with publisher(servers) as client:
        for subject in FOREIGN:
            await client.publish(subjects.infer(lane), b"{}", reply=subject)
        # The stream acknowledges in order.
        await client.request(subjects.infer(lane), b"{}", timeout=WAIT_S)
    assert await fleet.api.backlog(lane.model) == {lane: len(FOREIGN) + 1}
    await fleet.check_untouched()


async def test_a_trace_reaches_nobody_else(servers: NatsServers, fleet: Fleet) -> None:
    lane = lane_of(servers, "trace")
    async with publisher(servers) as client:
        for subject in FOREIGN:
            await client.publish(subjects.infer(lane), b"{}", headers={"Nats-Trace-Dest": subject})
        await client.request(subjects.infer(lane), b"{}", timeout=WAIT_S)
    await fleet.check_untouched()


async def test_a_cancel_is_answered_to_nobody(servers: NatsServers, fleet: Fleet) -> None:
    own = RequestKey("t-acme", "r")
    async with publisher(servers) as client:
        for subject in FOREIGN:
            await client.publish(subjects.cancel(own), b"", reply=subject)
        await client.flush()
    for _ in FOREIGN:
        assert await fleet.cancels.next(RequestKey) == own
    await fleet.check_untouched()


async def test_an_acknowledgement_to_ones_own_lane_goes_round_once(servers: NatsServers, fleet: Fleet) -> None:
    lane = lane_of(servers, "round")
    async with publisher(servers) as client:
        await client.publish(subjects.infer(lane), b"{}", reply=subjects.infer(lane))
        await client.request(subjects.infer(lane), b"{}", timeout=WAIT_S)
        await client.request(subjects.infer(lane), b"{}", timeout=WAIT_S)
    assert (await fleet.api.backlog(lane.model))[lane] <= 4


async def test_a_publisher_on_any_node_is_served(servers: NatsServers, fleet: Fleet) -> None:
    """Acknowledgement, duplicate detection, headers, frames and cancel, through the imports."""
    lane = lane_of(servers, "served")
    for node in range(servers.num_nodes):
        key = RequestKey("t-acme", f"served-{node}")
        msg_id = subjects.key_id(key)
        async with publisher(servers, node) as client:
            replies = await client.subscribe(subjects.reply(key))
            answers = [
                await client.request(
                    subjects.infer(lane),
                    b"{}",
                    timeout=WAIT_S,
                    headers={subjects.HEADER_MSG_ID: msg_id, subjects.HEADER_TRACEPARENT: "00-1-2-01"},
                )
                for _ in range(2)
            ]
            first, second = (json.loads(answer.data) for answer in answers)
            assert first["stream"] == "PROMPTS"
            assert second == first | {"duplicate": True}
            stored = await fleet.api.read_prompt(first["seq"])
            assert stored is not None
            assert stored[0] == lane
            assert stored[2][subjects.HEADER_MSG_ID] == msg_id
            assert stored[2][subjects.HEADER_TRACEPARENT] == "00-1-2-01"
            seq = await fleet.worker.send_frame(key, b"frame")
            frame = await replies.next_msg(timeout=WAIT_S)
            assert (frame.subject, frame.data) == (subjects.reply(key), b"frame")
            assert (frame.headers or {})[subjects.HEADER_SEQUENCE] == str(seq)
            await client.publish(subjects.cancel(key), b"")
            assert await fleet.cancels.next(RequestKey) == key


async def test_tenants_accounts_share_nothing(servers: NatsServers) -> None:
    """Not even a subject that both may use in their own account."""
    async with publisher(servers) as client:
        other = servers.connection("t-a.b c")
        thief = await nats_py.connect(
            other.urls[0], inbox_prefix=other.inbox_prefix.encode(), error_cb=_ignore, **other.options()
        )
        stolen = await thief.subscribe(f"{servers.connection('t-acme').inbox_prefix}.>")
        await client.request(subjects.infer(lane_of(servers, "shared")), b"{}", timeout=WAIT_S)
        await thief.flush()
        assert stolen.pending_msgs == 0
        await thief.close()


async def _ignore(_: Exception) -> None:
    """The refusal, which the test of permissions looks at."""


async def test_a_message_id_that_another_tenant_used_up_is_told_as_duplicate(servers: NatsServers) -> None:
    """NATS compares ids over the whole stream; a publisher that tries for the first time can see it."""
    taken = {subjects.HEADER_MSG_ID: f"t-acme.taken-{servers.num_nodes}"}
    other = servers.connection("t-a.b c")
    thief = await nats_py.connect(other.urls[0], inbox_prefix=other.inbox_prefix.encode(), **other.options())
    lane = Lane("taken", ServiceClass.BATCH, "a.b c")
    await thief.request(subjects.infer(lane), b"{}", timeout=WAIT_S, headers=taken)
    await thief.close()
    async with publisher(servers) as client:
        own = subjects.infer(lane_of(servers, "taken"))
        answer = await client.request(own, b"{}", timeout=WAIT_S, headers=taken)
    assert json.loads(answer.data)["duplicate"] is True


async def test_what_is_on_no_lane_is_removed(servers: NatsServers, fleet: Fleet) -> None:
    """A publisher may use any token for the model, also one that no name is spelled as."""
    lane = lane_of(servers, "strays")
    async with publisher(servers) as client:
        await client.request("inferflux.infer.$weird$.default.acme", b"{}", timeout=WAIT_S)
        answer = await client.request("inferflux.infer.=61.default.acme", b"{}", timeout=WAIT_S)
        stray = json.loads(answer.data)["seq"]
        kept = json.loads((await client.request(subjects.infer(lane), b"{}", timeout=WAIT_S)).data)["seq"]
    found = await fleet.api.next_prompt(stray - 2)
    assert found is not None
    assert found.seq == kept
    assert not await fleet.api.drop_prompt(stray)
    assert not await fleet.api.drop_prompt(stray - 1)
    assert await fleet.api.drop_prompt(kept)
