"""Requests that do not simply end: clients that go, workers that are missing, servers that stop."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from harness.scripted_worker import Turn, hello, silent

from inferflux.api import exchange, patience
from inferflux.api.cancel import Order
from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.wire.requests import decode_frame
from inferflux.config.settings import Settings

HI = {"messages": [{"role": "user", "content": "Hi"}]}


async def ended(api: Any, turn: Turn) -> str:
    """The code of the error that the tape ends with."""
    await api.parts.canceller.drain(5)
    frames = [decode_frame(entry.body) for entry in (await api.broker.read_tape(turn.key)).frames]
    (end,) = [frame for frame in frames if frame.terminal]
    return "" if end.error is None else end.error.code


def queueing(settings: Settings, **fields: Any) -> Settings:
    """The settings, with others for the queue."""
    return msgspec.structs.replace(settings, queue=msgspec.structs.replace(settings.queue, **fields))


async def until_claimed(api: Any) -> Turn:
    async with asyncio.timeout(30):
        while not api.worker.turns or not api.worker.turns[0].attempt:
            await asyncio.sleep(0.01)
    turn: Turn = api.worker.turns[0]
    return turn


async def test_stream_whose_client_goes_is_cancelled(api: Any) -> None:
    async def endless(turn: Turn) -> None:
        while True:
            await turn.say("x")
            await asyncio.sleep(0.005)

    api.worker.script = endless
    call = api.call("/v1/chat/completions", HI | {"stream": True})
    await call.until(b'"content":"x"')
    call.hang_up()

    # At once is long before the grace of those who come back, `streams.resume_grace_s`.
    async with asyncio.timeout(30):
        await call.task
        await api.worker.cancel_seen.wait()
    assert await ended(api, api.worker.turns[0]) == "cancelled"
    assert await api.broker.backlog() == {}
    assert api.parts.dispatcher.num_open == 0
    assert api.parts.relay.num_streams == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_goes_before_the_first_token_cancels(api: Any, stream: bool) -> None:
    api.worker.script = silent
    call = api.call("/v1/chat/completions", HI | {"stream": stream})
    turn = await until_claimed(api)
    call.hang_up()

    # At once is long before the grace of those who come back, `streams.resume_grace_s`.
    async with asyncio.timeout(30):
        await call.task
        await api.worker.cancel_seen.wait()
    assert await ended(api, turn) == "cancelled"


async def test_request_without_a_worker_is_cancelled_while_it_waits(apis: Any) -> None:
    api = await apis.start(worker=False)
    call = api.call("/v1/chat/completions", HI)
    async with asyncio.timeout(30):
        while not await api.broker.backlog():
            await asyncio.sleep(0.01)
    call.hang_up()
    await call.task
    await api.parts.canceller.drain(5)

    assert await api.broker.backlog() == {}


async def test_stream_opens_after_the_hold_and_pings(api: Any) -> None:
    go = asyncio.Event()

    async def late(turn: Turn) -> None:
        await go.wait()
        await hello(turn)

    api.worker.script = late
    call = api.call("/v1/chat/completions", HI | {"stream": True})
    await call.begin()
    assert call.status == 200
    pings = await call.until(b": queued position=1") + await call.until(b": queued position=1")
    assert b"data:" not in pings
    go.set()

    assert b'"content":"Hel"' in await call.until(b"[DONE]")
    await call.task


async def test_error_after_the_hold_is_an_event(api: Any) -> None:
    go = asyncio.Event()

    async def late(turn: Turn) -> None:
        await go.wait()
        await turn.fail(msgspec.structs.replace(exchange.GONE, code="engine_error"))

    api.worker.script = late
    call = api.call("/v1/chat/completions", HI | {"stream": True})
    await call.until(b": queued position=1")
    go.set()

    assert b'data: {"error":' in await call.until(b"engine_error")


async def test_model_without_a_worker_ends_after_the_grace(apis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PATIENCE_INTERVAL_S", 0.05)
    api = await apis.start(queueing(apis.settings, no_backend_grace_s=0.2))
    response = await api.chat(model="big")

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_backend"
    assert int(response.headers["retry-after"]) >= 1
    assert await api.broker.backlog() == {}


async def test_model_that_loads_is_waited_for(apis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PATIENCE_INTERVAL_S", 0.02)
    api = await apis.start(queueing(apis.settings, no_backend_grace_s=0.2))

    async def late(turn: Turn) -> None:
        await asyncio.sleep(0.4)
        await hello(turn)

    api.worker.script = late

    assert (await api.chat()).status_code == 200


async def test_nobody_starts_it_in_time(apis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PATIENCE_INTERVAL_S", 0.02)
    monkeypatch.setattr(patience, "TIMEOUT_MARGIN_S", 0.0)
    api = await apis.start(queueing(apis.settings, queue_timeout_s=0.1), worker=False)
    response = await api.chat()

    assert response.status_code == 504
    assert response.json()["error"]["code"] == "queue_timeout"


async def test_running_request_has_no_queue_timeout(apis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PATIENCE_INTERVAL_S", 0.02)
    api = await apis.start()
    go, judged, cancel = asyncio.Event(), asyncio.Event(), api.parts.canceller.cancel

    async def slow(turn: Turn) -> None:
        await go.wait()
        await hello(turn)

    async def noted(order: Order, **options: Any) -> bool:
        over: bool = await cancel(order, **options)
        judged.set()
        return over

    api.worker.script = slow
    monkeypatch.setattr(api.parts.canceller, "cancel", noted)
    asked = asyncio.create_task(api.chat())
    await until_claimed(api)
    # From now on it has waited for longer than it may.
    monkeypatch.setattr(patience, "TIMEOUT_MARGIN_S", -api.settings.queue.queue_timeout_s)
    async with asyncio.timeout(30):
        await judged.wait()
    go.set()

    assert (await asked).status_code == 200


async def test_drain_lets_streams_end_and_refuses_new_ones(api: Any) -> None:
    go = asyncio.Event()

    async def waits(turn: Turn) -> None:
        await turn.say("Hel")
        await go.wait()
        await turn.end(text="lo", num_tokens=1, finish_reason="stop")

    api.worker.script = waits
    call = api.call("/v1/chat/completions", HI | {"stream": True})
    await call.until(b"Hel")
    draining = asyncio.create_task(api.parts.dispatcher.drain(30))
    await asyncio.sleep(0)

    refused = await api.chat()
    ready = await api.client.get("/readyz")
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert refused.headers["retry-after"] == "1"
    assert ready.status_code == 503
    assert ready.json()["checks"]["not_draining"] is False
    assert not draining.done()
    go.set()
    assert b'"content":"lo"' in await call.until(b"[DONE]")
    await draining


async def test_a_replica_that_is_leaving_takes_requests_until_its_notice_is_over(api: Any) -> None:
    api.parts.dispatcher.give_notice()

    ready = await api.client.get("/readyz")
    answer = await api.chat()

    assert (ready.status_code, ready.json()["checks"]["not_draining"]) == (503, False)
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")


async def test_drain_timeout_ends_streams_with_an_error(api: Any) -> None:
    async def stuck(turn: Turn) -> None:
        await turn.say("Hel")
        await silent(turn)

    api.worker.script = stuck
    call = api.call("/v1/chat/completions", HI | {"stream": True})
    await call.until(b"Hel")
    draining = asyncio.create_task(api.parts.dispatcher.drain(0.05))

    assert b'"code":"draining"' in await call.until(b"error")
    await call.task
    await draining
    assert await ended(api, api.worker.turns[0]) == "draining"


async def test_publish_of_unknown_outcome_is_cancelled(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = api.broker.publish_prompt
    api.worker.script = silent

    async def unanswered(*args: Any, **kwargs: Any) -> Any:
        await publish(*args, **kwargs)
        raise BrokerUnavailable("no acknowledgement")

    monkeypatch.setattr(api.broker, "publish_prompt", unanswered)
    response = await api.chat()

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "broker_unavailable"
    assert await ended(api, await until_claimed(api)) == "cancelled"
