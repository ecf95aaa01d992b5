"""Fairness that changes while running: what is stored, and what reaches tenants and shares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import BUCKET_POLICY, KEY_FAIRNESS
from inferflux.broker.wire.policies import Fairness
from inferflux.config.settings import MinShareSettings, Settings, TenantSettings
from inferflux.registry.control import Control
from inferflux.registry.fairness import FairnessStore
from inferflux.registry.store import PolicyStore
from inferflux.registry.tenants import Tenants


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(MemoryHub())


class Follower:
    """A follower at work, and every share that it told."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.tenants = Tenants.from_settings(Settings(tenants=(TenantSettings(id="acme", weight=2, max_queued=7),)))
        self.told: asyncio.Queue[MinShareSettings] = asyncio.Queue()
        control = Control(Settings(), PolicyStore(broker), self.tenants)
        self.control = control
        control.fairness.share_with(self.told.put_nowait)

    async def next(self) -> MinShareSettings:
        async with asyncio.timeout(30):
            return await self.told.get()


@asynccontextmanager
async def following(broker: MemoryBroker) -> AsyncIterator[Follower]:
    made = Follower(broker)
    made.control.start()
    try:
        assert await made.next() == MinShareSettings()
        yield made
    finally:
        await made.control.close()


async def test_changes_name_what_changes(broker: MemoryBroker) -> None:
    store = FairnessStore(PolicyStore(broker))
    assert await store.read() == Fairness()

    await store.change({"acme": 4.0, "globex": 0.5}, {"batch": 0.1})
    assert await store.change({"globex": None}, {"default": 0.3}) == Fairness(
        weights={"acme": 4.0}, min_share={"batch": 0.1, "default": 0.3}
    )
    assert await store.read() == Fairness(weights={"acme": 4.0}, min_share={"batch": 0.1, "default": 0.3})


async def test_changes_at_the_same_time_are_all_kept(broker: MemoryBroker) -> None:
    store = FairnessStore(PolicyStore(broker))
    await asyncio.gather(*(store.change({f"tenant{number}": 2.0}, {}) for number in range(10)))

    assert len((await store.read()).weights) == 10


async def test_entry_wins_over_settings_and_gives_them_back(broker: MemoryBroker) -> None:
    store = FairnessStore(PolicyStore(broker))
    async with following(broker) as made:
        await store.change({"acme": 4.0, "unknown": 3.0}, {"batch": 0.5})

        assert await made.next() == MinShareSettings(batch=0.5)
        assert made.tenants.tenant("acme").weight == 4.0
        assert made.tenants.tenant("acme").max_queued == 7
        assert made.tenants.tenant("unknown").weight == 3.0
        assert made.tenants.tenant("other").weight == 1.0

        await store.change({"acme": None}, {"batch": None})

        assert await made.next() == MinShareSettings()
        assert made.tenants.tenant("acme").weight == 2.0
        assert made.tenants.tenant("unknown").weight == 3.0


async def test_deleted_entry_gives_the_settings_back(broker: MemoryBroker) -> None:
    await FairnessStore(PolicyStore(broker)).change({"acme": 4.0}, {"batch": 0.5})
    async with following(broker) as made:
        assert await made.next() == MinShareSettings(batch=0.5)
        await (await broker.bucket(BUCKET_POLICY)).delete(KEY_FAIRNESS)

        assert await made.next() == MinShareSettings()
        assert made.tenants.tenant("acme").weight == 2.0


async def test_entry_that_is_no_fairness_changes_nothing(broker: MemoryBroker) -> None:
    bucket = await broker.bucket(BUCKET_POLICY)
    async with following(broker) as made:
        await bucket.put(KEY_FAIRNESS, b'{"weights": {"acme": -1}}')
        await bucket.put("guardrails", b"something else")
        await bucket.put(KEY_FAIRNESS, b'{"min_share": {"batch": 0.2}}')

        assert await made.next() == MinShareSettings(batch=0.2)
        assert made.tenants.tenant("acme").weight == 2.0


async def test_change_needs_the_broker(broker: MemoryBroker) -> None:
    await broker.close()
    with pytest.raises(BrokerUnavailable):
        await FairnessStore(PolicyStore(broker)).change({"acme": 4.0}, {})


async def test_what_is_no_fairness_can_be_replaced(broker: MemoryBroker) -> None:
    await (await broker.bucket(BUCKET_POLICY)).put(KEY_FAIRNESS, b'{"stream":"PROMPTS","seq":4}')
    store = FairnessStore(PolicyStore(broker))
    assert await store.change({"acme": 4.0}, {}) == Fairness(weights={"acme": 4.0})
    assert await store.read() == Fairness(weights={"acme": 4.0})
