"""Limits over HTTP: what is let through, what is refused and how, what it costs; and what operators change and see."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from harness.nats import NatsServers
from prometheus_client import CollectorRegistry

from inferflux.api import throttle as throttle_module
from inferflux.api.throttle import Throttle
from inferflux.broker import jetstream_api, subjects
from inferflux.broker.errors import Code, RequestError
from inferflux.broker.subjects import Series
from inferflux.broker.wire.policies import Limits, RateLimit, TenantLimit
from inferflux.broker.wire.requests import Usage
from inferflux.config.metrics import ApiMetrics
from inferflux.config.settings import AuthSettings
from inferflux.registry.limits import LimitBook
from inferflux.registry.quota import budget_counter, pack
from inferflux.registry.tenants import Principal, Tenant
from inferflux.registry.usage import usage_amount, usage_counter

NOW_S = 1_800_000_030.0
PATH = "/v1/admin/rate_limit"


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The middle of a minute, for the throttle: no test runs into the next one."""
    clock = SimpleNamespace(now_s=NOW_S)
    clock.time = lambda: clock.now_s
    monkeypatch.setattr(throttle_module, "time", clock)
    return clock


def limit(api: Any, **sections: Any) -> None:
    """As if a change had just come from KV."""
    api.parts.control.limits.apply(Limits(**sections))


async def start(apis: Any, *, per_minute: int = 0, beside: Any = None) -> Any:
    auth = msgspec.structs.replace(apis.settings.auth, rate_limit_per_minute=per_minute)
    return await apis.start(msgspec.structs.replace(apis.settings, auth=auth), beside=beside)


async def test_every_key_has_its_requests_and_is_told_what_is_left(apis: Any, still: Any) -> None:
    api = await start(apis, per_minute=2)
    answers = [await api.chat() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"2"}
    assert {answer.headers["x-ratelimit-reset-requests"] for answer in answers} == {"30s"}
    refused = answers[-1]
    assert refused.headers["retry-after"] == "30"
    assert refused.json()["error"]["code"] == Code.RATE_LIMIT_EXCEEDED
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert (await api.chat("key-generate")).status_code == 200, "another key has requests of its own"
    still.now_s += 30
    assert (await api.chat()).status_code == 200, "another minute"
    text = (await api.client.get("/metrics")).text
    assert 'inferflux_limit_refusals_total{code="rate_limit_exceeded"} 1.0' in text


async def test_streams_tell_it_too(apis: Any) -> None:
    api = await start(apis, per_minute=5)
    answer = await api.chat(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"


async def test_two_replicas_let_through_what_the_limit_says(apis: Any) -> None:
    first = await start(apis, per_minute=40)
    second = await start(apis, per_minute=40, beside=first)
    answers = await asyncio.gather(*((first, second)[each % 2].chat() for each in range(100)))
    assert Counter(answer.status_code for answer in answers) == {200: 40, 429: 60}


async def test_a_tenants_limit_holds_over_its_keys_and_its_keys_refusals_leave_it_alone(apis: Any) -> None:
    api = await start(apis)
    limit(
        api,
        tenants={"acme": TenantLimit(requests_per_minute=3)},
        keys={key_of(api, "key-generate"): RateLimit(requests_per_minute=1)},
    )
    assert [(await api.chat("key-generate")).status_code for _ in range(3)] == [200, 429, 429]
    assert [(await api.chat()).status_code for _ in range(3)] == [200, 200, 429]
    assert (await api.chat("key-bounded")).status_code == 200


def key_of(api: Any, key: str) -> str:
    principal = api.parts.control.tenants.authenticate(key, NOW_S)
    return str(principal.key_id)


async def test_spent_tokens_and_budgets_are_refused_at_once(apis: Any) -> None:
    api = await start(apis)
    limit(api, tenants={"acme": TenantLimit(requests_per_minute=100, tokens_per_minute=50, tokens_per_month=70)})
    (scope,) = api.parts.control.limits.scopes("acme", None)
    await api.broker.count(scope.counter(NOW_S), pack(0, 49))
    answer = await api.chat()
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-tokens"] == "1"
    await api.broker.count(scope.counter(NOW_S), pack(0, 1))
    answer = await api.chat()
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, Code.RATE_LIMIT_EXCEEDED)
    assert answer.headers["x-ratelimit-remaining-tokens"] == "0"
    assert "tokens" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"] == "30"
    await api.broker.count(scope.counter(NOW_S), pack(0, -50))
    await api.broker.count(budget_counter("acme", NOW_S), 70)
    answer = await api.chat()
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, Code.INSUFFICIENT_QUOTA)
    assert answer.json()["error"]["type"] == "insufficient_quota"
    assert int(answer.headers["retry-after"]) > 60
    assert len(api.worker.turns) == 1
    assert await api.broker.counted(scope.counter(NOW_S)) == pack(1, 0), "a refused request has used up something"


class Counted:
    """A broker that notes what it was asked about counters."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self.calls: list[str] = []
        self.num_waves = 0
        self._running = 0

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            self.num_waves += self._running == 0
            self._running += 1
            await asyncio.sleep(0)
            try:
                return await getattr(self._broker, name)(*args, **kwargs)
            finally:
                self._running -= 1

        return call


async def test_what_limits_cost(api: Any) -> None:
    book, broker = LimitBook(AuthSettings()), Counted(api.broker)
    throttle = Throttle(broker, book, ApiMetrics(CollectorRegistry()))  # type: ignore[arg-type]
    principal = Principal(tenant=Tenant(id="acme"), scopes=frozenset(), models=frozenset(), key_id="k")
    connection: Any = {"state": {}}
    await throttle.admit(principal, connection)
    assert (broker.calls, connection["state"]) == ([], {}), "an unlimited caller costs something"
    book.apply(
        Limits(key=RateLimit(requests_per_minute=2), tenant=TenantLimit(tokens_per_minute=9, tokens_per_month=9))
    )
    await throttle.admit(principal, connection)
    assert sorted(broker.calls) == ["count", "count", "counted"]
    assert broker.num_waves == 1, "more than one round trip"
    await throttle.admit(principal, connection)
    with pytest.raises(RequestError):
        await throttle.admit(principal, connection)
    broker.calls.clear()
    with pytest.raises(RequestError):
        await throttle.admit(principal, connection)
    assert broker.calls == [], "what is known to be used up was asked for again"
    book.apply(Limits(key=RateLimit(requests_per_minute=4)))
    await throttle.admit(principal, connection)


@pytest.mark.integration
async def test_a_hundred_at_once_over_two_connections_never_exceed_it(
    nats: NatsServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long a busy machine takes; and whoever has to ask a second time is told the sum of all.
    monkeypatch.setattr(jetstream_api, "TRY_S", 60.0)
    waits = msgspec.structs.replace(nats.settings.broker, timeout_s=60.0)
    settings = msgspec.structs.replace(nats.settings, broker=waits)
    brokers = [await nats.connect("api", settings=settings) for _ in range(2)]
    try:
        book = LimitBook(AuthSettings(rate_limit_per_minute=37))
        throttles = [Throttle(broker, book, ApiMetrics(CollectorRegistry())) for broker in brokers]
        principal = Principal(tenant=Tenant(id="h"), scopes=frozenset(), models=frozenset(), key_id=f"k {id(book)}")
        admitted = await asyncio.gather(
            *(throttles[each % 2].admit(principal, {"state": {}}) for each in range(100)),  # type: ignore[typeddict-item]
            return_exceptions=True,
        )
        assert Counter(type(each) for each in admitted) == {type(None): 37, RequestError: 63}
    finally:
        for broker in brokers:
            await broker.close()


class TestAdmin:
    async def test_limits_change_and_are_given_back(self, apis: Any) -> None:
        api = await start(apis, per_minute=60)
        body = {"tenant": {"tokens_per_month": 1000}, "keys": {"k1": {"requests_per_minute": 5}}}
        answer = (await api.client.put(PATH, json=body)).json()
        assert answer["key"] == {"requests_per_minute": 60, "tokens_per_minute": None}
        assert answer["keys"] == {"k1": {"requests_per_minute": 5, "tokens_per_minute": None}}
        assert answer["tenant"]["tokens_per_month"] == 1000
        body = {"key": {"requests_per_minute": 0}, "tenant": {"tokens_per_month": None}, "keys": {"k1": None}}
        answer = (await api.client.put(PATH, json=body)).json()
        assert answer["changed"] == {"key": {"requests_per_minute": 0}, "tenant": {}}
        assert answer["key"]["requests_per_minute"] is None
        assert (await api.client.get(PATH)).json() == answer
        async with asyncio.timeout(30):
            while api.parts.control.limits.of_key("k").requests_per_minute is not None:
                await asyncio.sleep(0.005)

    async def test_a_dry_run_changes_nothing(self, api: Any) -> None:
        before = (await api.client.get(PATH)).json()
        answer = (await api.client.put(f"{PATH}?dry_run=true", json={"key": {"requests_per_minute": 5}})).json()
        assert (answer["key"]["requests_per_minute"], answer["dry_run"]) == (5, True)
        assert (await api.client.get(PATH)).json() == before

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"key": {"requests_per_minute": -1}}, "requests_per_minute"),
            ({"key": {"requests_per_minute": "5"}}, "requests_per_minute"),
            ({"key": {"tokens_per_month": 5}}, "tokens_per_month"),
            ({"keys": {"": {}}}, "keys"),
            ({"tenants": {"a": 5}}, "tenants"),
            ({"per_minute": 5}, "per_minute"),
        ],
    )
    async def test_nonsense_is_refused_by_name(self, api: Any, body: dict[str, Any], param: str) -> None:
        answer = await api.client.put(PATH, json=body)
        assert answer.status_code == 400
        assert param in answer.text

    async def test_usage_is_summed_and_filtered(self, api: Any) -> None:
        day_s = 24 * 3600
        usage = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=5)
        for number, (tenant, key, model) in enumerate([("acme", "k1", "big"), ("acme", None, "big"), ("b", "k2", "m")]):
            await api.broker.count(usage_counter(tenant, key, model, NOW_S + number * day_s), usage_amount(usage))
            await api.broker.count(usage_counter(tenant, key, model, NOW_S), usage_amount(usage))
        whole = (await api.client.get("/v1/admin/usage")).json()
        assert whole["total"] == {
            "requests": 6,
            "prompt_tokens": 60,
            "cached_tokens": 24,
            "completion_tokens": 30,
        }
        first = whole["data"][0]
        assert (first["tenant"], first["key"], first["period"], first["requests"]) == ("acme", "-", "2027-01-15", 1)
        assert len(whole["data"]) == 5
        for query, num_requests in [
            ("tenant=acme", 4),
            ("key=k2", 2),
            ("model=big&since=2027-01-16", 1),
            ("until=2027-01-15", 4),
            ("by=month", 6),
        ]:
            found = (await api.client.get(f"/v1/admin/usage?{query}")).json()
            assert found["total"]["requests"] == num_requests, query
        by_month = (await api.client.get("/v1/admin/usage?by=month&tenant=acme&key=k1")).json()["data"]
        assert [(row["period"], row["requests"]) for row in by_month] == [("2027-01", 2)]

    @pytest.mark.parametrize(
        "query", ["since=yesterday", "since=2026-02-30", "until=2026-1-1", "until=20260101", "by=year"]
    )
    async def test_unclear_questions_are_refused(self, api: Any, query: str) -> None:
        answer = await api.client.get(f"/v1/admin/usage?{query}")
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == query.partition("=")[0]

    @pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("PUT", PATH), ("GET", "/v1/admin/usage")])
    async def test_only_for_admins(self, api: Any, method: str, path: str) -> None:
        answer = await api.client.request(method, path, headers={"authorization": "Bearer key-generate"})
        assert answer.status_code == 403


async def test_a_worker_is_told_which_key_a_request_came_with(api: Any) -> None:
    await api.chat()
    assert api.worker.turns[0].prompt.key == key_of(api, "key-all")
    assert subjects.counter(usage_counter("acme", "k", "m", NOW_S)).count(".") == 5
    assert usage_counter("acme", "", "m", NOW_S).series is Series.USAGE
