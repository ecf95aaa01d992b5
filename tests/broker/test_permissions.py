"""What a role may not do on NATS, tried with plain nats-py and refused by a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats as nats_py
import pytest
from harness.nats import NatsServers
from harness.world import WAIT_S, Inbox

from inferflux.broker import subjects
from inferflux.broker.broker import Reply
from inferflux.broker.errors import BrokerError
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.broker.wire.requests import Claim

pytestmark = pytest.mark.integration

OTHER_LANES = [
    Lane("m", ServiceClass.DEFAULT, "globex"),
    Lane("m", ServiceClass.PRIORITY, "acme"),
]
FORBIDDEN_TO_PUBLISHERS = [
    *(subjects.infer(lane) for lane in OTHER_LANES),
    "inferflux.infer.m.default.*",
    subjects.frame(RequestKey("t-acme", "r")),
    subjects.claim(RequestKey("t-acme", "r")),
    subjects.reply(RequestKey("t-acme", "r")),
    subjects.cancel(RequestKey("t-globex", "r")),
    subjects.cancel(RequestKey("a-1", "r")),
    subjects.fair("m"),
    subjects.forward("m", "e"),
    "inferflux.limit.tokens.acme.1",
    subjects.kv("tenants", "acme"),
    subjects.js_api("STREAM", "INFO", "PROMPTS"),
    subjects.js_api("STREAM", "DELETE", "PROMPTS"),
    subjects.js_api("CONSUMER", "CREATE", "PROMPTS", "x"),
    subjects.js_api("DIRECT", "GET", "TAPE"),
    "$JS.ACK.PROMPTS.x.1.1.1.1.0",
]
FORBIDDEN_TO_READERS = [
    "inferflux.>",
    "inferflux.reply.*.*",
    subjects.reply_filter("t-globex"),
    subjects.bell_filter("m"),
    subjects.BELL_SOURCE,
    subjects.TAPE_ALL,
    subjects.FORWARD_ALL,
    "_INBOX_worker.>",
    "_INBOX.>",
    "$JS.ACK.>",
]
FORBIDDEN_TO_WORKERS = [
    subjects.infer(Lane("m", ServiceClass.DEFAULT, "acme")),
    subjects.cancel(RequestKey("a-1", "r")),
    subjects.reply(RequestKey("a-1", "r")),
    subjects.kv("policy", "guardrails"),
    subjects.kv("tenants", "acme"),
    subjects.kv("registry", "m"),
    subjects.kv("idempotency", "k"),
    subjects.js_api("STREAM", "DELETE", "PROMPTS"),
    subjects.js_api("STREAM", "PURGE", "PROMPTS"),
    subjects.js_api("STREAM", "CREATE", "X"),
    subjects.js_api("STREAM", "UPDATE", "PROMPTS"),
    subjects.js_api("STREAM", "MSG", "DELETE", "TAPE"),
    subjects.js_api("CONSUMER", "CREATE", "KV_idempotency", "x"),
]
FORBIDDEN_TO_API = [
    subjects.fair("m"),
    subjects.forward("m", "e"),
    subjects.js_api("STREAM", "DELETE", "PROMPTS"),
    subjects.js_api("STREAM", "CREATE", "X"),
    subjects.js_api("CONSUMER", "CREATE", "PROMPTS", "x", "inferflux.infer.m.default.acme"),
    subjects.js_api("CONSUMER", "MSG", "NEXT", "PROMPTS", "x"),
    "$JS.ACK.PROMPTS.x.1.1.1.1.0",
    "$SYS.REQ.SERVER.PING",
]


@asynccontextmanager
async def client(servers: NatsServers, role: str) -> AsyncIterator[tuple[Any, asyncio.Queue[str]]]:
    """A plain nats-py client of a role, and what the server has refused it."""
    refused: asyncio.Queue[str] = asyncio.Queue()

    async def on_error(error: Exception) -> None:
        if "permissions violation" in str(error):
            refused.put_nowait(str(error))

    connection = servers.connection(role)
    opened = await nats_py.connect(
        list(connection.urls), error_cb=on_error, inbox_prefix=connection.inbox_prefix, **connection.options()
    )
    try:
        yield opened, refused
    finally:
        await opened.close()


async def assert_refused(servers: NatsServers, role: str, *, publish: list[str], subscribe: list[str]) -> None:
    async with client(servers, role) as (opened, refused):
        for verb, targets in (("publish", publish), ("subscription", subscribe)):
            for subject in targets:
                if verb == "publish":
                    await opened.publish(subject, b"{}")
                else:
                    await opened.subscribe(subject)
                try:
                    async with asyncio.timeout(WAIT_S):
                        refusal = await refused.get()
                except TimeoutError:
                    pytest.fail(f"{role}: {verb} {subject} is allowed")
                assert f'{verb} to "{subject.lower()}"' in refusal


async def test_publisher_is_held_to_its_tenant_and_classes(nats: NatsServers) -> None:
    await assert_refused(nats, "t-acme", publish=FORBIDDEN_TO_PUBLISHERS, subscribe=FORBIDDEN_TO_READERS)


async def test_worker_publishes_no_prompt_and_no_policy(nats: NatsServers) -> None:
    await assert_refused(
        nats, "worker", publish=FORBIDDEN_TO_WORKERS, subscribe=["inferflux.reply.*.*", "_INBOX_api.>", "_INBOX.>", ">"]
    )


async def test_api_neither_pulls_nor_deletes_streams(nats: NatsServers) -> None:
    await assert_refused(
        nats, "api", publish=FORBIDDEN_TO_API, subscribe=["_INBOX_worker.>", "_INBOX.>", "$SYS.>", ">"]
    )


async def test_publisher_gets_its_prompt_stored_and_its_frames(nats: NatsServers) -> None:
    """With nothing but nats-py, under the tenant's own permissions; tenant and model need escaping."""
    lane = Lane("org/model:v1.5", ServiceClass.BATCH, "a.b c")
    key = RequestKey(subjects.tenant_owner(lane.tenant), "my request")
    async with nats.broker("worker") as worker, client(nats, "t-a.b c") as (opened, refused):
        replies = await opened.subscribe(subjects.reply(key))
        cancels = Inbox()
        await worker.listen_cancels(cancels.put)
        ack = await opened.request(
            "inferflux.infer.org=2Fmodel=3Av1=2E5.batch.a=2Eb=20c",
            b'{"type": "completion", "id": "my request", "prompt": "Hi"}',
            timeout=WAIT_S,
            headers={"Nats-Msg-Id": "a.b c/my request"},
        )
        assert b'"stream":"PROMPTS"' in ack.data
        assert (await worker.backlog(lane.model)) == {lane: 1}
        seq = await worker.send_frame(key, b"frame")
        message = await replies.next_msg(timeout=WAIT_S)
        assert (message.data, message.headers["Nats-Sequence"]) == (b"frame", str(seq))
        await opened.publish(subjects.cancel(key), b"")
        assert await cancels.next(RequestKey) == key
        assert refused.empty()


async def test_a_tenants_frames_reach_no_other_tenant(nats: NatsServers) -> None:
    key = RequestKey("t-globex", "r1")
    async with nats.broker("worker") as worker, nats.broker("api") as api, client(nats, "t-acme") as (opened, refused):
        inbox = Inbox()
        await api.listen_replies(key.owner, inbox.put)
        stolen = await opened.subscribe(subjects.reply(key))
        async with asyncio.timeout(WAIT_S):
            await refused.get()
        await worker.send_frame(key, b"secret")
        assert (await inbox.next(Reply)).body == b"secret"
        await opened.flush()
        assert stolen.pending_msgs == 0


async def test_refused_call_fails_at_once_and_says_so(nats: NatsServers) -> None:
    async with nats.broker("worker") as worker:
        bucket = await worker.bucket("policy")
        # Left unanswered, it would fail without the reason.
        with pytest.raises(BrokerError, match="permissions"):
            await bucket.put("guardrails", b"off")


async def test_a_cancel_with_a_body_is_none(nats: NatsServers) -> None:
    ours, theirs = RequestKey("a-1", "ours"), RequestKey("a-1", "theirs")
    async with nats.broker("worker") as worker, nats.broker("api") as api, client(nats, "api") as (opened, _):
        cancels = Inbox()
        await worker.listen_cancels(cancels.put)
        await opened.publish(subjects.cancel(theirs), b'{"stream":"PROMPTS","seq":4}')
        await opened.flush()
        await api.send_cancel(ours)
        assert await cancels.next(RequestKey) == ours


async def test_what_is_no_claim_stands_in_nobodys_way(nats: NatsServers) -> None:
    key = RequestKey("a-1", "spoiled")
    async with nats.broker("worker") as worker, client(nats, "worker") as (opened, _):
        await opened.request(subjects.claim(key), b'{"stream":"PROMPTS","seq":4}', timeout=WAIT_S)
        last = await worker.last_claim(key)
        assert last is not None
        assert last[1].worker == ""
        mine = Claim(worker="w", prompt=7)
        seq = await worker.put_claim(key, mine, expected_seq=last[0])
        assert await worker.claims(key) == (last[1], mine)
        assert (await worker.read_tape(key)).claim_seq == seq
