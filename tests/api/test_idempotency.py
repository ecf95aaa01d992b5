"""Idempotency keys: one request, however often and wherever it is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest
from harness.scripted_worker import Turn, failing, hello, silent

from inferflux.api import idempotency
from inferflux.api.cancel import Order
from inferflux.broker.errors import BrokerError, BrokerUnavailable, Code, MessageTooLarge, QueueFull
from inferflux.broker.wire.requests import failure

HI = {"messages": [{"role": "user", "content": "Hi"}]}


async def post(api: Any, key: str = "k1", path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    response: httpx.Response = await api.client.post(path, json=HI | fields, headers={"idempotency-key": key})
    return response


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("here", [False, True])
async def test_a_retry_gets_the_first_answer(apis: Any, here: bool, stream: bool) -> None:
    api = await apis.start()
    other = api if here else await apis.start(beside=api)
    first = await post(api)
    again = await post(other, stream=stream)

    assert first.status_code == again.status_code == 200
    assert len(api.worker.turns) == 1
    if stream:
        assert first.json()["id"] in again.text
    else:
        assert again.json() == first.json()


async def test_of_simultaneous_requests_one_runs(apis: Any) -> None:
    api = await apis.start()
    other = await apis.start(beside=api)
    answers = await asyncio.gather(*(post(each) for each in (api, other) * 4))

    assert len(api.worker.turns) == 1
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].status_code == 200


@pytest.mark.parametrize(
    ("fields", "path"),
    [({"max_tokens": 3}, "/v1/chat/completions"), ({"prompt": "Hi", "messages": None}, "/v1/completions")],
)
async def test_another_request_under_the_key_is_a_conflict(api: Any, fields: dict[str, Any], path: str) -> None:
    await post(api)
    body = {name: value for name, value in (HI | fields).items() if value is not None}
    again = await api.client.post(path, json=body, headers={"idempotency-key": "k1"})

    assert (again.status_code, again.json()["error"]["code"]) == (422, "idempotency_conflict")
    assert len(api.worker.turns) == 1


async def test_keys_and_tenants_are_apart(api: Any) -> None:
    ids = [(await post(api)).json()["id"], (await post(api, "k2")).json()["id"]]
    headers = {"idempotency-key": "k1", "authorization": "Bearer key-bounded"}
    ids.append((await api.client.post("/v1/chat/completions", json=HI, headers=headers)).json()["id"])

    assert len(set(ids)) == 3


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
async def test_a_key_that_cannot_be_kept_is_refused(api: Any, key: str) -> None:
    answer = await post(api, key)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


async def test_an_answer_that_is_no_longer_kept_is_not_computed_again(api: Any) -> None:
    await post(api)
    await api.broker.purge_tape(api.worker.turns[0].key)
    again = await post(api)

    assert (again.status_code, again.json()["error"]["code"]) == (410, "stream_gone")
    assert len(api.worker.turns) == 1


@pytest.mark.parametrize(("code", "runs"), [(Code.ENGINE_ERROR, 2), (Code.CONTEXT_LENGTH_EXCEEDED, 1)])
async def test_a_failure_that_may_pass_is_tried_again(api: Any, code: Code, runs: int) -> None:
    api.worker.script = failing(code, "no")
    first = await post(api)
    api.worker.script = hello
    again = await post(api)

    assert first.json()["error"]["code"] == code
    assert again.status_code == (200 if runs == 2 else first.status_code)
    assert len(api.worker.turns) == runs


@pytest.mark.parametrize("read", [False, True])
async def test_a_failure_is_tried_again_when_its_tape_is_gone_too(api: Any, read: bool) -> None:
    api.worker.script = failing(Code.ENGINE_ERROR, "no") if read else silent
    call = api.call("/v1/chat/completions", HI, idempotency_key="k1")
    turn = await api.until_running()
    if not read:
        call.hang_up()
        await api.parts.canceller.cancel(Order(turn.key, 1, failure(Code.NO_BACKEND, "no worker")))
    await call.task
    await api.parts.canceller.drain(5)
    await api.broker.purge_tape(turn.key)
    api.worker.script = hello

    assert (await post(api)).status_code == 200
    assert len(api.worker.turns) == 2


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(QueueFull("full"), 429, "queue_full"), (MessageTooLarge("large"), 413, "request_too_large")],
)
async def test_a_refused_request_frees_its_key(
    api: Any, monkeypatch: pytest.MonkeyPatch, error: BrokerError, status: int, code: str
) -> None:
    with monkeypatch.context() as patch:

        async def refuse(*_: Any, **__: Any) -> Any:
            raise error

        patch.setattr(api.broker, "publish_prompt", refuse)
        answer = await post(api)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert (await post(api, max_tokens=5)).status_code == 200


async def test_a_replica_that_died_before_it_published_loses_nothing(
    apis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await apis.start()
    other = await apis.start(beside=api)

    async def never(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(api.broker, "publish_prompt", never)
    call = api.call("/v1/chat/completions", HI, idempotency_key="k1")
    async with asyncio.timeout(30):
        while not await (await api.broker.bucket("idempotency")).entries():
            await asyncio.sleep(0.005)
    (entry,) = await (await api.broker.bucket("idempotency")).entries()
    again = await post(other)

    assert again.status_code == 200
    assert msgspec.json.decode(entry.value)["request"] in again.json()["id"]
    assert len(api.worker.turns) == 1
    call.task.cancel()
    await asyncio.gather(call.task, return_exceptions=True)


async def test_a_publish_whose_acknowledgement_was_lost_is_joined(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = api.broker.publish_prompt

    async def unanswered(*args: Any, **kwargs: Any) -> Any:
        await publish(*args, **kwargs)
        raise BrokerUnavailable("no acknowledgement")

    with monkeypatch.context() as patch:
        patch.setattr(api.broker, "publish_prompt", unanswered)
        assert (await post(api)).status_code == 503
    assert (await post(api)).status_code == 200
    assert len(api.worker.turns) == 1
    assert not api.worker.cancelled


async def test_a_record_that_was_never_stored_in_time_is_taken_over(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        async def unreachable(*_: Any, **__: Any) -> Any:
            raise BrokerUnavailable("away")

        patch.setattr(api.broker, "publish_prompt", unreachable)
        assert (await post(api)).status_code == 503
    later_s = idempotency.time.time() + 10_000
    with monkeypatch.context() as patch:
        patch.setattr(idempotency.time, "time", lambda: later_s)
        answer = await post(api)

    assert answer.status_code == 200
    assert len(api.worker.turns) == 1


async def test_a_client_that_goes_may_come_back_for_the_answer(api: Any) -> None:
    go = asyncio.Event()

    async def late(turn: Turn) -> None:
        await go.wait()
        await hello(turn)

    api.worker.script = late
    call = api.call("/v1/chat/completions", HI, idempotency_key="k1")
    await api.until_running()
    call.hang_up()
    await call.task
    assert api.parts.vigil.num_left == 1

    again = asyncio.create_task(post(api))
    async with asyncio.timeout(30):
        while api.parts.vigil.num_left:
            await asyncio.sleep(0.005)
    go.set()

    assert (await again).json()["choices"][0]["message"]["content"] == "Hello"
    assert not api.worker.cancelled


async def test_a_drain_leaves_a_silent_request_to_others(api: Any) -> None:
    api.worker.script = silent
    call = api.call("/v1/chat/completions", HI, idempotency_key="k1")
    await api.until_running()
    await api.parts.dispatcher.drain(0.01)
    await call.begin()

    assert call.status == 503
    await api.parts.canceller.drain(1)
    assert not api.worker.cancelled
