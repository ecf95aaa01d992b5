"""Which limits are in force for a key and a tenant, and how they follow the document in KV."""

from __future__ import annotations

import asyncio

from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.wire.policies import Limits, RateLimit, TenantLimit
from inferflux.config.settings import AuthSettings, Settings
from inferflux.registry.control import Control
from inferflux.registry.limits import LimitBook, LimitStore
from inferflux.registry.store import PolicyStore
from inferflux.registry.tenants import Tenants


def book(limits: Limits, per_minute: int = 0) -> LimitBook:
    made = LimitBook(AuthSettings(rate_limit_per_minute=per_minute))
    made.apply(limits)
    return made


def test_nothing_is_limited_unless_somebody_says_so() -> None:
    free = book(Limits())
    assert free.scopes("acme", "k1") == []
    assert free.budget("acme") is None


def test_a_keys_own_limit_wins_over_every_keys_and_that_over_the_settings() -> None:
    limits = Limits(
        key=RateLimit(tokens_per_minute=1000),
        keys={"k1": RateLimit(requests_per_minute=5), "k2": RateLimit(requests_per_minute=0, tokens_per_minute=0)},
    )
    said = book(limits, per_minute=60)
    assert said.of_key("k1") == RateLimit(requests_per_minute=5, tokens_per_minute=1000)
    assert said.of_key("k2") == RateLimit(), "0 is no limit"
    assert said.of_key("other") == RateLimit(requests_per_minute=60, tokens_per_minute=1000)
    assert [scope.kind for scope in said.scopes("acme", "k1")] == ["key"]
    assert said.scopes("acme", "k2") == []
    assert said.scopes("acme", None) == [], "the limit of a key is none of its tenant's"


def test_a_tenants_limits_hold_for_all_its_keys() -> None:
    limits = Limits(
        tenant=TenantLimit(requests_per_minute=10, tokens_per_month=500),
        tenants={"acme": TenantLimit(requests_per_minute=20)},
    )
    said = book(limits)
    assert [scope.limit.requests_per_minute for scope in said.scopes("acme", "k1")] == [20]
    assert [scope.limit.requests_per_minute for scope in said.scopes("globex", None)] == [10]
    assert said.budget("acme") == 500
    assert (
        book(Limits(tenant=TenantLimit(tokens_per_month=5), tenants={"a": TenantLimit(tokens_per_month=0)})).budget("a")
        is None
    )


async def test_a_change_reaches_every_process_and_a_dry_run_none() -> None:
    hub = MemoryHub()
    settings = Settings()
    controls = [Control(settings, PolicyStore(MemoryBroker(hub)), Tenants.from_settings(settings)) for _ in range(2)]
    for control in controls:
        control.start()
        await control.wait_listed(5)
    store = LimitStore(PolicyStore(MemoryBroker(hub)))
    wanted = Limits(key=RateLimit(requests_per_minute=3))
    assert await store.change(lambda _: wanted, dry_run=True) == wanted
    assert await store.read() == Limits()
    assert await store.change(lambda _: wanted) == wanted
    async with asyncio.timeout(30):
        while any(control.limits.of_key("k").requests_per_minute != 3 for control in controls):
            await asyncio.sleep(0.005)
    for control in controls:
        await control.close()
