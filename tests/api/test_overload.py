from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from harness.scripted_worker import silent

from inferflux.api import admission
from inferflux.api.outlook import DrainRate
from inferflux.broker.errors import Code, QueueFull, RequestError, TapeFull, TooManyLanes
from inferflux.broker.subjects import ServiceClass
from inferflux.registry.tenants import Tenant

PRIORITY, DEFAULT, BATCH = ServiceClass


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QueueFull("full"), 429, "queue_full"),
        (TooManyLanes("many"), 503, "too_many_lanes"),
        (TapeFull("full"), 503, "tape_full"),
    ],
)
async def test_broker_limits(
    api: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(api.broker, "publish_prompt", refuse)
    response = await api.chat()

    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert int(response.headers["retry-after"]) >= 1
    assert api.parts.relay.num_streams == 0


async def test_broker_outage_is_a_503(api: Any) -> None:
    api.hub.online = False
    response = await api.chat()
    ready = await api.client.get("/readyz")
    api.hub.online = True

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "broker_unavailable"
    assert response.headers["retry-after"] == "1"
    assert ready.status_code == 503
    assert ready.json()["checks"]["broker_connected"] is False
    assert await api.broker.backlog() == {}


async def test_readiness_needs_no_worker_but_tells(api: Any) -> None:
    with_worker = await api.client.get("/readyz")
    await api.worker.leave()
    async with asyncio.timeout(30):
        while api.parts.follower.fleet.workers():
            await asyncio.sleep(0.01)
    without = await api.client.get("/readyz")

    assert (with_worker.status_code, with_worker.json()["notes"]) == (
        200,
        {"worker_ready": True, "policy_intact": True},
    )
    assert without.status_code == 200
    assert without.json()["notes"] == {"worker_ready": False, "policy_intact": True}


async def test_retry_after_follows_the_measured_rate(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise QueueFull("full")

    monkeypatch.setattr(api.broker, "publish_prompt", refuse)
    waits = []
    for rate in (None, 10.0, 0.1, 0.0001):
        monkeypatch.setattr(DrainRate, "per_s", lambda *_, rate=rate: rate)
        api.parts.pressure.ended("org/small")
        waits.append((await api.chat()).headers["retry-after"])

    assert waits == ["1", "1", "10", "600"]


async def test_waiting_clients_learn_their_place(apis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api = await apis.start(worker=False)
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    calls = []
    for _ in range(3):
        calls.append(api.call("/v1/chat/completions", body))
        async with asyncio.timeout(30):
            while api.parts.dispatcher.num_open < len(calls):
                await asyncio.sleep(0.005)
    await calls[2].begin()
    assert calls[2].headers["x-inferflux-queue-position"] == "3"
    assert "x-inferflux-estimated-wait-s" not in calls[2].headers
    assert await calls[2].piece() == b": queued position=3\n\n"

    monkeypatch.setattr(DrainRate, "per_s", lambda *_: 0.5)
    api.parts.pressure.ended("org/small")
    calls[0].hang_up()
    await calls[0].task
    await api.parts.canceller.drain(5)
    await api.parts.pressure.look()
    assert b"position=2 wait_s=4\n" in await calls[2].until(b"position=2 wait_s")
    for call in calls[1:]:
        call.hang_up()
        await call.task


async def test_full_tape_admits_nobody(api: Any) -> None:
    api.parts.pressure.tape_fill = 0.81

    response = await api.chat()

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "tape_full"


async def test_tenant_bound_counts_what_was_admitted_since_the_last_look(api: Any) -> None:
    api.worker.script = silent
    waiting = [asyncio.create_task(api.chat("key-bounded")) for _ in range(2)]
    async with asyncio.timeout(30):
        while len(api.worker.turns) < 2:
            await asyncio.sleep(0.01)

    before = await api.chat("key-bounded")
    await api.parts.pressure.look()
    after = await api.chat("key-bounded")
    other = asyncio.create_task(api.chat())
    async with asyncio.timeout(30):
        while len(api.worker.turns) < 3:
            await asyncio.sleep(0.01)

    for response in (before, after):
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
    for task in (*waiting, other):
        task.cancel()
    await asyncio.gather(*waiting, other, return_exceptions=True)


def tenant(*classes: ServiceClass) -> Tenant:
    return Tenant(id="t", classes=classes)


@pytest.mark.parametrize(
    ("tier", "classes", "expected"),
    [
        (None, (PRIORITY, DEFAULT, BATCH), DEFAULT),
        ("auto", (PRIORITY, DEFAULT), DEFAULT),
        (None, (PRIORITY, BATCH), PRIORITY),
        ("auto", (BATCH,), BATCH),
        ("default", (DEFAULT,), DEFAULT),
        ("priority", (PRIORITY,), PRIORITY),
        ("flex", (BATCH,), BATCH),
    ],
)
def test_service_class(tier: Any, classes: tuple[ServiceClass, ...], expected: ServiceClass) -> None:
    assert admission.service_class(tier, tenant(*classes)) is expected


def test_room_is_checked_before_the_bound_is_passed() -> None:
    bounded = msgspec.structs.replace(tenant(DEFAULT), max_queued=2)
    admission.check_room(bounded, 1, 0.0, 0.8)
    admission.check_room(tenant(DEFAULT), 10_000, 0.79, 0.8)

    with pytest.raises(RequestError) as full:
        admission.check_room(bounded, 2, 0.0, 0.8)
    assert full.value.code is Code.QUEUE_FULL


@pytest.mark.parametrize(
    ("waited_s", "absent_s", "ends"), [(9, 100, False), (10, 9, False), (10, 10, True), (100, 0, False)]
)
def test_no_backend_needs_both_waits(waited_s: float, absent_s: float, ends: bool) -> None:
    assert (admission.no_backend("m", waited_s=waited_s, absent_s=absent_s, grace_s=10) is not None) is ends


def test_no_grace_still_needs_absence() -> None:
    assert admission.no_backend("m", waited_s=0, absent_s=0, grace_s=0) is None
    assert admission.no_backend("m", waited_s=0, absent_s=0.1, grace_s=0) is not None
