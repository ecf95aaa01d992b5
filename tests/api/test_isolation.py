"""What a tenant may do with another's requests, which is nothing; and where keys must never be seen."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from harness.scripted_worker import silent

from inferflux.api.identity import key_of
from inferflux.config.logs import JsonFormatter

STRANGER = {"authorization": "Bearer key-bounded"}


async def running(api: Any) -> str:
    """A resumable request of acme's that is under way, and its id."""
    api.worker.script = silent
    call = api.call(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hi"}], "stream": True},
        x_inferflux_resumable="true",
    )
    turn = await api.until_running()
    await asyncio.wait({call.task}, timeout=0)
    return str(turn.prompt.id)


async def test_another_tenant_cannot_read_or_resume_a_stream(apis: Any) -> None:
    api = await apis.start()
    beside = await apis.start(beside=api)
    name = await running(api)
    unknown = None
    for replica in (api, beside):
        for each in (name, f"chatcmpl-{name}", f"cmpl-{name}"):
            answer = await replica.client.get(f"/v1/streams/{each}", headers=STRANGER)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            unknown = unknown or (await replica.client.get("/v1/streams/never-was", headers=STRANGER)).text
            assert answer.text == unknown


async def test_another_tenant_cannot_cancel_a_request(api: Any) -> None:
    name = await running(api)
    for path in (f"/v1/admin/requests/{name}", f"/v1/streams/{name}", f"/v1/chat/completions/{name}"):
        answer = await api.client.delete(path, headers=STRANGER)
        assert answer.status_code == (403 if "admin" in path else 404), path
    _, claim = await api.broker.last_claim(key_of(name))
    assert claim.state == "running"


async def test_an_idempotency_key_is_each_tenants_own(api: Any) -> None:
    once = {"idempotency-key": "order-7"}
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    mine = await api.client.post("/v1/chat/completions", json=body, headers=once)
    theirs = await api.client.post("/v1/chat/completions", json=body | {"max_tokens": 5}, headers=once | STRANGER)
    assert (mine.status_code, theirs.status_code) == (200, 200)
    assert mine.json()["id"] != theirs.json()["id"]


async def test_keys_are_in_no_log_error_or_metric(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    made = (await api.client.post("/v1/admin/api_keys", json={"tenant": "acme", "name": "x"})).json()
    seen = [
        (await api.client.get(path)).text for path in ("/metrics", "/readyz", "/v1/admin/api_keys", "/openapi.json")
    ]
    for key in (made["key"], "key-all", "not-a-key-7"):
        answer = await api.client.get("/v1/nothing", headers={"authorization": f"Bearer {key}"})
        refused = await api.client.get("/v1/models", headers={"authorization": f"Bearer {key}!"})
        odd = await api.client.get("/v1/models", headers={"authorization": f"Basic {key}"})
        seen += [answer.text, refused.text, odd.text]
    logged = "\n".join(map(JsonFormatter("api").format, caplog.records))
    seen.append(logged)
    assert made["id"] in logged
    for secret in (made["key"], made["key"].partition(made["id"])[2], "key-all", "not-a-key-7"):
        assert not [text for text in seen if secret in text]
