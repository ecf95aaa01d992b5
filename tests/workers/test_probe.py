from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from inferflux.broker.errors import ConfigError
from inferflux.workers.probe import Probe


def probe(**changes: Any) -> Probe:
    worker = SimpleNamespace(hung=set(), draining=False, hosts=[SimpleNamespace(state="ready")])
    broker = SimpleNamespace(connected=True)
    for name, value in changes.items():
        setattr(broker if name == "connected" else worker, name, value)
    registry = CollectorRegistry()
    Counter("inferflux_example", "Counts.", registry=registry).inc()
    return Probe(worker, broker, registry)  # type: ignore[arg-type]


async def get(server: Probe, path: str) -> httpx.Response:
    with server.serving("127.0.0.1", 0) as port:
        return await asyncio.to_thread(httpx.get, f"http://127.0.0.1:{port}{path}", timeout=60)


async def test_a_healthy_worker_is_live_ready_and_measured() -> None:
    assert (await get(probe(), "/livez")).status_code == 200
    ready = await get(probe(), "/readyz")
    assert (ready.status_code, set(ready.json().values())) == (200, {True})
    assert "inferflux_example_total 1.0" in (await get(probe(), "/metrics")).text
    assert (await get(probe(), "/elsewhere")).status_code == 404


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"connected": False}, "broker"),
        ({"draining": True}, "accepting"),
        ({"hosts": [SimpleNamespace(state="loading")]}, "model"),
        ({"hung": {"m"}}, "engine"),
    ],
)
async def test_what_keeps_a_worker_from_being_ready(changes: dict[str, Any], check: str) -> None:
    ready = await get(probe(**changes), "/readyz")
    assert ready.status_code == 503
    assert [name for name, good in ready.json().items() if not good] == [check]


async def test_only_a_hung_engine_is_a_reason_to_restart() -> None:
    assert (await get(probe(hung={"m"}), "/livez")).status_code == 503
    assert (await get(probe(connected=False, draining=True), "/livez")).status_code == 200


async def test_a_taken_port_is_named() -> None:
    with (
        probe().serving("127.0.0.1", 0) as port,
        pytest.raises(ConfigError, match=f"metrics_port.*{port}"),
        probe().serving("127.0.0.1", port),
    ):
        pass
