"""OPA: real Rego policies over its data API, and everything that can go wrong on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from harness.opa import OpaServer, answer, running_opa

from inferflux.broker.errors import Code, ConfigError, RequestError
from inferflux.broker.subjects import Lane, ServiceClass
from inferflux.broker.wire.requests import ChatPrompt, CompletionPrompt, Message
from inferflux.config.settings import GuardrailSettings
from inferflux.registry.guardrails.guard import Blocked, Guard
from inferflux.registry.guardrails.opa import MAX_ANSWER_BYTES, Opa, endpoint

LANE = Lane("org/small", ServiceClass.DEFAULT, "acme")


@pytest.fixture
async def opa() -> AsyncIterator[OpaServer]:
    async with running_opa() as server:
        yield server


def chat(text: str) -> ChatPrompt:
    return ChatPrompt(id="r", messages=(Message(role="user", content=text),), max_tokens=5)


class Judge:
    """A guard with nothing but OPA, and what it counted."""

    def __init__(self, url: str, *, opa_timeout_s: float = 60.0, **settings: Any) -> None:
        self.guard = Guard(GuardrailSettings(opa_endpoint=url, opa_timeout_s=opa_timeout_s, **settings))
        self.hits: list[tuple[str, str, str]] = []
        self.guard.on_hit = lambda *hit: self.hits.append(hit)

    async def __aenter__(self) -> Judge:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.guard.close()

    async def __call__(self, text: str = "hello", lane: Lane = LANE) -> None:
        await self.guard.judge(chat(text), lane)


@pytest.mark.parametrize("path", ["", "/", "/v1/data/inferflux", "/v1/data/inferflux/allow"])
async def test_what_the_policy_allows_passes(opa: OpaServer, path: str) -> None:
    async with Judge(opa.url + path) as judge:
        await judge()
    assert opa.inputs == [
        {
            "tenant": "acme",
            "model": "org/small",
            "service_class": "default",
            "kind": "chat",
            "texts": ["hello"],
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 5,
            "n": 1,
        }
    ]
    assert judge.hits == []


async def test_what_the_policy_denies_is_blocked(opa: OpaServer) -> None:
    async with Judge(opa.url) as judge:
        with pytest.raises(Blocked, match="'opa'") as caught:
            await judge("about a Forbidden Topic")
    assert (caught.value.code, caught.value.param, caught.value.guardrail) == (Code.CONTENT_FILTER, "messages", "opa")
    assert judge.hits == [("input", "opa", "block")]


async def test_the_policy_may_say_why(opa: OpaServer) -> None:
    async with Judge(opa.url) as judge:
        with pytest.raises(Blocked, match="trial tenants may not ask here"):
            await judge(lane=msgspec.structs.replace(LANE, tenant="trial"))


async def test_another_rule_of_the_same_policy(opa: OpaServer) -> None:
    async with Judge(opa.url + "/v1/data/inferflux/short") as judge:
        await judge("brief")
        with pytest.raises(RequestError) as caught:
            # `short` is undefined, not false: no decision.
            await judge("long" * 20)
    assert caught.value.code is Code.GUARDRAIL_UNAVAILABLE


@pytest.mark.parametrize(
    "raw",
    [
        answer(b"{}"),
        answer(b'{"result": "yes"}'),
        answer(b'{"result": {"allow": 1}}'),
        answer(b'{"result": {}}'),
        answer(b"[1]"),
        answer(b"not json"),
        answer(b"\xff\xfe"),
        answer(b'{"result": true}', "500 Internal Server Error"),
        answer(b'{"result": true}', "302 Found", b"location: http://127.0.0.1:1/\r\n"),
        answer(b'{"result": true}' + b" " * MAX_ANSWER_BYTES),
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{}",
    ],
)
async def test_an_answer_without_a_decision_fails_closed(opa: OpaServer, raw: bytes) -> None:
    opa.raw = raw
    async with Judge(opa.url, opa_timeout_s=0.3) as judge:
        with pytest.raises(RequestError) as caught:
            await judge()
    assert caught.value.code is Code.GUARDRAIL_UNAVAILABLE
    assert judge.hits == [("input", "opa", "block")]


async def test_a_slow_policy_fails_closed_in_time(opa: OpaServer) -> None:
    opa.hold = asyncio.Event()
    async with Judge(opa.url, opa_timeout_s=0.1) as judge, asyncio.timeout(30):
        with pytest.raises(RequestError) as caught:
            await judge()
    assert caught.value.code is Code.GUARDRAIL_UNAVAILABLE
    assert caught.value.retry_after_s


async def test_a_policy_server_that_is_down_fails_closed_and_recovers() -> None:
    async with running_opa() as server:
        url = server.url
    async with Judge(url) as judge:
        with pytest.raises(RequestError) as caught:
            await judge()
        assert caught.value.code is Code.GUARDRAIL_UNAVAILABLE


async def test_failing_open_is_a_setting(opa: OpaServer) -> None:
    opa.raw = answer(b"{}")
    async with Judge(opa.url, opa_fail_open=True) as judge:
        await judge()
        opa.raw = answer(b'{"result": false}')
        with pytest.raises(Blocked):
            await judge()


async def test_equal_input_is_asked_about_once_where_that_is_allowed(opa: OpaServer) -> None:
    now_s = 0.0
    client = Opa(GuardrailSettings(opa_endpoint=opa.url, opa_timeout_s=60.0, opa_cache_ttl_s=10), now=lambda: now_s)
    given = {"tenant": "acme", "texts": ["a"]}
    for _ in range(3):
        assert (await client.decide(given)).allow
    assert len(opa.inputs) == 1
    await client.decide({**given, "texts": ["b"]})
    assert len(opa.inputs) == 2
    now_s = 11.0
    await client.decide(given)
    assert len(opa.inputs) == 3
    await client.close()


async def test_without_the_setting_every_prompt_is_asked_about(opa: OpaServer) -> None:
    async with Judge(opa.url) as judge:
        await judge()
        await judge()
    assert len(opa.inputs) == 2


async def test_redacted_text_is_what_the_policy_sees(opa: OpaServer) -> None:
    guard = Guard(GuardrailSettings(blocklist=("pii",), opa_endpoint=opa.url, opa_timeout_s=60.0))
    with pytest.raises(Blocked):
        await guard.judge(chat("a@b.com"), LANE)
    assert opa.inputs == []
    await guard.judge(CompletionPrompt(id="r", prompt=("one", "two")), LANE)
    assert (opa.inputs[0]["kind"], opa.inputs[0]["texts"]) == ("completion", ["one", "two"])
    await guard.close()


@pytest.mark.parametrize("url", ["opa:8181", "file:///etc/passwd", "ftp://opa/x", "http://", "gopher://opa", "//opa"])
def test_only_http_urls_are_asked(url: str) -> None:
    with pytest.raises(ConfigError, match=r"guardrails\.opa_endpoint"):
        endpoint(url)
