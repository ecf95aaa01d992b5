from __future__ import annotations

import asyncio
from typing import Any

import pytest

from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.registry import follower
from inferflux.registry.follower import FleetFollower


async def test_following_goes_on_after_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "RETRY_S", 0.01)
    broker = MemoryBroker(MemoryHub())
    bucket, num_calls = broker.bucket, 0

    async def broken_once(name: str) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            raise RuntimeError("a bug")
        return await bucket(name)

    broker.bucket = broken_once  # type: ignore[method-assign]
    followed = FleetFollower(broker)
    followed.start()
    async with asyncio.timeout(30):
        await followed.ready.wait()
    await followed.close()

    assert num_calls == 2
