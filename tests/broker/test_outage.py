"""What a broker's user sees when the server dies, freezes, or throws it out."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import msgspec
import pytest
from harness.nats import NatsServers
from harness.ports import free_ports
from harness.world import LIMITS, WAIT_S, Inbox

from inferflux.broker.broker import Reply
from inferflux.broker.credentials import Connection
from inferflux.broker.errors import BrokerUnavailable, ConfigError
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.link import NoAnswer
from inferflux.broker.packet import Packet
from inferflux.broker.subjects import Counter as CountOf
from inferflux.broker.subjects import Lane, RequestKey, Series, ServiceClass, claim
from inferflux.broker.subjects import counter as counter_subject
from inferflux.broker.topology import LIMITS_KEPT
from inferflux.broker.wire.requests import Claim
from inferflux.config.settings import Settings

pytestmark = pytest.mark.integration

LANE = Lane("m", ServiceClass.DEFAULT, "acme")
KEY = RequestKey("a-1", "r")


def patient(settings: Settings) -> Settings:
    """Nothing is given up for want of time: whatever fails has another reason."""
    broker = msgspec.structs.replace(settings.broker, timeout_s=2 * WAIT_S)
    tape = msgspec.structs.replace(settings.tape, ack_timeout_s=2 * WAIT_S)
    return msgspec.structs.replace(settings, broker=broker, tape=tape)


async def until(broker: JetStreamBroker, connected: bool) -> None:
    async with asyncio.timeout(WAIT_S):
        while broker.connected != connected:
            await asyncio.sleep(0.01)


async def resend(broker: JetStreamBroker, body: bytes) -> int:
    """Send a frame until the tape has it, as a worker's outbox does: the tape comes back after the connection."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await broker.send_frame(KEY, body)
            except BrokerUnavailable:
                await asyncio.sleep(0.01)


async def test_prompts_survive_a_killed_server_and_brokers_come_back(own_nats: NatsServers) -> None:
    async with own_nats.broker("api") as api, own_nats.broker("worker") as worker:
        inbox = Inbox()
        await api.listen_replies("a-1", inbox.put)
        receipt = await api.publish_prompt(LANE, b"kept", msg_id="1")
        own_nats.kill()
        await until(api, False)
        own_nats.start()
        await until(api, True)
        await until(worker, True)
        # A busy server may say "nothing" of a prompt that is there.
        async with asyncio.timeout(WAIT_S):
            while (delivery := await worker.pull(LANE, LIMITS)) is None:
                await asyncio.sleep(0.01)
        assert (delivery.seq, delivery.body) == (receipt.seq, b"kept")
        await resend(worker, b"frame")
        assert (await inbox.next(Reply)).body == b"frame"


async def test_frames_fail_at_once_when_the_connection_is_lost(own_nats: NatsServers) -> None:
    settings = patient(own_nats.settings)
    async with own_nats.broker("api"), own_nats.broker("worker", settings) as worker:
        own_nats.freeze()
        outstanding = [worker.send_frame(KEY, b"%d" % number) for number in range(10)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in outstanding)
        own_nats.kill()
        async with asyncio.timeout(WAIT_S):
            results = await asyncio.gather(*outstanding, return_exceptions=True)
        assert {type(each) for each in results} == {BrokerUnavailable}
        assert not worker.connected
        late = worker.send_frame(KEY, b"late")
        assert late.done()
        assert isinstance(late.exception(), BrokerUnavailable)
        own_nats.start()
        await until(worker, True)
        # Nothing that was reported as failed may show up behind its sender's back.
        seq = await resend(worker, b"again")
        assert [(each.seq, each.body) for each in (await worker.read_tape(KEY)).frames] == [(seq, b"again")]


async def test_a_frozen_server_fails_frames_after_the_timeout(own_nats: NatsServers) -> None:
    async with own_nats.broker("worker") as worker:
        own_nats.freeze()
        frame = worker.send_frame(KEY, b"x")
        with pytest.raises(BrokerUnavailable):
            async with asyncio.timeout(WAIT_S):
                await frame
        assert worker.connected, "it did not fail for want of an answer"
        own_nats.thaw()
        await worker.put_claim(KEY, Claim(worker="w"), expected_seq=0)


async def test_publish_waits_for_a_server_that_restarts(own_nats: NatsServers) -> None:
    async with own_nats.broker("api", patient(own_nats.settings)) as api:
        own_nats.kill()
        publishing = asyncio.create_task(api.publish_prompt(LANE, b"x", msg_id="1"))
        await asyncio.sleep(0)
        own_nats.start()
        receipt = await publishing
        assert (await api.publish_prompt(LANE, b"x", msg_id="1")) == msgspec.structs.replace(receipt, duplicate=True)
        assert await api.backlog() == {LANE: 1}


async def test_claim_whose_answer_was_late_is_not_lost(own_nats: NatsServers, monkeypatch: pytest.MonkeyPatch) -> None:
    async with own_nats.broker("worker", patient(own_nats.settings)) as worker:
        sent, send, again = Counter[str](), worker._link.send, asyncio.Event()

        def noted(subject: str, *rest: Any, **options: Any) -> None:
            send(subject, *rest, **options)
            sent[subject] += 1
            if sent[claim(KEY)] > 1:
                again.set()

        monkeypatch.setattr(worker._link, "send", noted)
        own_nats.freeze()
        claiming = asyncio.create_task(worker.put_claim(KEY, Claim(worker="w"), expected_seq=0))
        # The second try finds the first one's copy.
        async with asyncio.timeout(WAIT_S):
            await again.wait()
        own_nats.thaw()
        seq = await claiming
        assert await worker.last_claim(KEY) == (seq, Claim(worker="w"))


@pytest.mark.parametrize(("num_others", "told"), [(LIMITS_KEPT - 1, 1), (LIMITS_KEPT, 1 + LIMITS_KEPT)])
async def test_a_count_whose_answer_was_lost_is_told_what_it_was(
    own_nats: NatsServers, monkeypatch: pytest.MonkeyPatch, num_others: int, told: int
) -> None:
    counter = CountOf(Series.LIMIT, ("tenant", "acme", "1"))
    async with own_nats.broker("api", patient(own_nats.settings)) as api, own_nats.broker("worker") as others:
        request, answers = api._link.request, 0

        async def lossy(subject: str, *rest: Any, **options: Any) -> Packet:
            nonlocal answers
            packet = await request(subject, *rest, **options)
            answers += subject == counter_subject(counter)
            if answers != 1:
                return packet
            answers += 1
            for _ in range(num_others):
                await others.count(counter, 1)
            raise NoAnswer("it was lost")

        monkeypatch.setattr(api._link, "request", lossy)
        assert await api.count(counter, 1) == told
        assert await others.counted(counter) == 1 + num_others


async def test_publish_gives_up_in_time(own_nats: NatsServers) -> None:
    async with own_nats.broker("api") as api:
        own_nats.kill()
        with pytest.raises(BrokerUnavailable):
            async with asyncio.timeout(own_nats.settings.broker.timeout_s + WAIT_S):
                await api.publish_prompt(LANE, b"x", msg_id="1")
        own_nats.start()


async def test_watch_reports_what_changed_during_an_outage(own_nats: NatsServers) -> None:
    settings = patient(own_nats.settings)
    async with own_nats.broker("api", settings) as api, own_nats.broker("api", settings) as other:
        bucket = await api.bucket("registry")
        await bucket.put("stays", b"1")
        await bucket.put("goes", b"1")
        watch = (await other.bucket("registry")).watch()
        listed = {entry.key for entry in [await anext(watch) for _ in range(3)] if entry is not None}
        assert listed == {"stays", "goes"}
        own_nats.kill()
        await until(api, False)
        own_nats.start()
        await until(api, True)
        await bucket.delete("goes")
        await bucket.put("comes", b"2")
        async with asyncio.timeout(WAIT_S):
            changes = [await anext(watch) for _ in range(2)]
        assert {(each.key, each.value) for each in changes if each is not None} == {("goes", None), ("comes", b"2")}
        await watch.aclose()  # type: ignore[attr-defined]


async def test_thrown_out_client_reopens(own_nats: NatsServers) -> None:
    async with own_nats.broker("worker") as worker:
        inbox = Inbox()
        await worker.listen_gossip("m", inbox.put)
        own_nats.revoke("worker")
        await until(worker, False)
        own_nats.restore()
        # The server closes what has connected while it read its configuration.
        async with asyncio.timeout(WAIT_S):
            while inbox.empty:
                with contextlib.suppress(BrokerUnavailable):
                    await worker.send_gossip("m", b"back")
                await asyncio.sleep(0.01)
        assert await inbox.next(bytes) == b"back"
        assert await worker.pull(LANE, LIMITS) is None


async def test_wrong_password_says_so_at_once(own_nats: NatsServers) -> None:
    wrong = msgspec.structs.replace(own_nats.connection("worker"), password="wrong")
    with pytest.raises(ConfigError, match=r"broker\.password"):
        await JetStreamBroker.connect(own_nats.settings, "worker", "test", connection=wrong)


async def test_no_server_names_the_address(own_nats: NatsServers) -> None:
    port = free_ports(1)[0]
    nowhere = Connection(urls=(f"nats://127.0.0.1:{port}",), inbox_prefix="_INBOX_worker", user="u", password="secret")
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}") as error:
        await JetStreamBroker.connect(own_nats.settings, "worker", "test", connection=nowhere, deadline_s=0.5)
    assert "secret" not in str(error.value)


async def test_a_bucket_cannot_be_listed_while_the_server_is_frozen(own_nats: NatsServers) -> None:
    async with own_nats.broker("api") as api:
        bucket = await api.bucket("deadletters")
        await bucket.put("t-acme.r", b"letter")
        own_nats.freeze()
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(BrokerUnavailable):
                await bucket.keys()
        own_nats.thaw()
        await until(api, True)
        assert await bucket.keys() == ["t-acme.r"]
