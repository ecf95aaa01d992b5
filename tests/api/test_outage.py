"""The API while NATS is away: refusals that say so, and no request half accepted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from harness.asgi import running
from harness.nats import NatsServers, own_nats
from harness.scripted_worker import SECRET, ScriptedWorker, Turn

from inferflux.api.app import create_app
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import Lane, ServiceClass, infer
from inferflux.config.settings import AuthSettings, KeySettings, Settings
from inferflux.registry.control import Control
from inferflux.registry.models import ModelEntry, Models
from inferflux.registry.store import PolicyStore
from inferflux.registry.tenants import Tenants

__all__ = ["own_nats"]

pytestmark = pytest.mark.integration

BODY = {"prompt": "Hi"}
LANE = Lane("m", ServiceClass.DEFAULT, "acme")
MODELS = Models([ModelEntry(id="m", path=None, backend="llamacpp", default=True)])


class Api:
    """One replica and one scripted worker on a server that may go away."""

    def __init__(
        self, settings: Settings, broker: JetStreamBroker, worker: ScriptedWorker, worker_broker: JetStreamBroker
    ) -> None:
        self.broker = broker
        self.worker = worker
        self.worker_broker = worker_broker
        control = Control(settings, PolicyStore(broker), Tenants.from_settings(settings))
        self.app = create_app(settings, broker, Stamper(SECRET), Models(MODELS), control)
        transport = httpx.ASGITransport(self.app)
        self.client = httpx.AsyncClient(
            transport=transport, base_url="http://api", headers={"authorization": "Bearer key"}
        )

    async def listening(self) -> None:
        """Until the worker, who asks for nothing by itself, hears bells again."""
        async with asyncio.timeout(20):
            while not self.worker_broker.connected:
                await asyncio.sleep(0.02)
            await self.worker_broker.backlog()

    async def ready(self, wanted: bool) -> None:
        async with asyncio.timeout(20):
            while ((await self.client.get("/readyz")).status_code == 200) is not wanted:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def replica(own_nats: NatsServers, **broker_settings: Any) -> AsyncIterator[Api]:
    auth = AuthSettings(api_keys=(KeySettings(key="key", tenant=LANE.tenant),))
    waits = msgspec.structs.replace(own_nats.settings.broker, **broker_settings)
    tape = msgspec.structs.replace(own_nats.settings.tape, ack_timeout_s=60.0)
    settings = msgspec.structs.replace(own_nats.settings, auth=auth, broker=waits, tape=tape)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(own_nats.broker("api", settings))
        other = await stack.enter_async_context(own_nats.broker("worker", settings))
        worker = await stack.enter_async_context(ScriptedWorker(other, "m"))
        api = Api(settings, broker, worker, other)
        await stack.enter_async_context(api.client)
        await stack.enter_async_context(running(api.app))
        yield api


@pytest.fixture
async def api(own_nats: NatsServers) -> AsyncIterator[Api]:
    async with replica(own_nats) as api:
        yield api


async def test_an_outage_is_told_and_leaves_nothing_behind(api: Api, own_nats: NatsServers) -> None:
    await api.ready(True)
    assert (await api.client.post("/v1/completions", json=BODY)).status_code == 200
    async with asyncio.timeout(30):
        while await api.broker.backlog():
            await asyncio.sleep(0.01)
    own_nats.stop()
    await api.ready(False)
    keyed = {"idempotency-key": "k1"}
    posts = [api.client.post("/v1/completions", json=BODY, headers=headers) for headers in ({}, keyed)]
    refused = await asyncio.gather(*posts)
    own_nats.start()
    await api.ready(True)
    await api.listening()
    await api.app.state.parts.canceller.drain(20)

    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert await api.broker.backlog() == {}
    assert len(api.worker.turns) == 1
    assert (await api.client.post("/v1/completions", json=BODY, headers=keyed)).status_code == 200


async def test_a_frozen_server_gets_every_request_once(own_nats: NatsServers, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(own_nats, timeout_s=60.0) as api:
        await api.ready(True)
        sent, send = Counter[bytes](), api.broker._link.send

        def noted(subject: str, data: bytes, *rest: Any, **options: Any) -> None:
            send(subject, data, *rest, **options)
            if subject == infer(LANE):
                sent[data] += 1

        monkeypatch.setattr(api.broker._link, "send", noted)
        own_nats.freeze()
        posts = [asyncio.create_task(api.client.post("/v1/completions", json=BODY)) for _ in range(5)]
        # Until every publish has been sent again, under the same message id.
        async with asyncio.timeout(30):
            while len(sent) < len(posts) or min(sent.values()) < 2:
                await asyncio.sleep(0.01)
        own_nats.thaw()
        answers = await asyncio.gather(*posts)

        assert [answer.status_code for answer in answers] == [200] * len(posts)
        assert len({turn.prompt.id for turn in api.worker.turns}) == len(api.worker.turns) == len(posts)


async def test_an_answer_whose_end_was_lost_with_the_server_is_an_error(api: Api, own_nats: NatsServers) -> None:
    spoken = asyncio.Event()

    async def lose_the_end(turn: Turn) -> None:
        await turn.say("Hel")
        # As after a terminal frame that went down with the tape, which is kept in memory.
        await turn.delivery.ack()
        spoken.set()

    api.worker.script = lose_the_end
    await api.ready(True)
    post = asyncio.create_task(api.client.post("/v1/completions", json=BODY))
    async with asyncio.timeout(30):
        await spoken.wait()
    own_nats.stop()
    own_nats.start()

    async with asyncio.timeout(20):
        answer = await post
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "stream_diverged")
