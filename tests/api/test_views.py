"""What can be looked at: models, health, metrics, admin, documents."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from harness.scripted_worker import silent
from litestar.routes import HTTPRoute

from inferflux.api.identity import Identity
from inferflux.api.openapi import OPERATIONS
from inferflux.broker.stamp import Stamper


async def test_models_say_what_serves_them(api: Any) -> None:
    answer = (await api.client.get("/v1/models")).json()

    assert answer["object"] == "list"
    small, big, pretend = answer["data"]
    assert (small["id"], small["object"], small["owned_by"]) == ("org/small", "model", "inferflux")
    assert (small["ready"], small["backend"], small["stub"], small["context_length"]) == (True, "llamacpp", False, 2048)
    assert (small["default"], small["aliases"]) == (True, ["small"])
    assert (big["ready"], big["num_workers"], big["default"]) == (False, 0, False)
    assert pretend["ready"] is True


async def test_stub_that_stands_in_gives_its_reason(apis: Any) -> None:
    api = await apis.start(worker=False)
    pretend = (await api.client.get("/v1/models/pretend")).json()

    assert (pretend["stub"], pretend["backend"]) == (True, "stub")
    assert "missing" in pretend["stub_reason"]


@pytest.mark.parametrize("name", ["org/small", "org%2Fsmall", "small"])
async def test_model_by_id_or_alias(api: Any, name: str) -> None:
    response = await api.client.get(f"/v1/models/{name}")

    assert response.status_code == 200
    assert response.json()["id"] == "org/small"


async def test_key_sees_its_models_only(api: Any) -> None:
    key = {"authorization": "Bearer key-other-model"}
    models = (await api.client.get("/v1/models", headers=key)).json()["data"]

    assert [model["id"] for model in models] == ["big"]
    assert (await api.client.get("/v1/models/small", headers=key)).status_code == 403


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/metrics", "/docs", "/openapi.json"])
async def test_open_to_everybody(api: Any, path: str) -> None:
    response = await api.client.get(path, headers={"authorization": ""})

    assert response.status_code == 200
    assert response.headers["content-type"].count("charset") <= 1
    if path in ("/livez", "/readyz", "/healthz", "/metrics"):
        assert (await api.client.head(path)).status_code == 200


async def test_a_path_says_which_methods_it_has(api: Any) -> None:
    response = await api.client.options("/v1/chat/completions", headers={"authorization": ""})

    assert response.status_code == 204
    assert "POST" in response.headers["allow"]


async def test_metrics_show_requests_queues_and_workers(api: Any) -> None:
    await api.chat()
    await api.chat(stream=True)
    await api.chat(temperature=5)
    await api.client.get("/anything/a/stranger/asks")
    api.worker.script = silent
    waiting = asyncio.create_task(api.chat())
    async with asyncio.timeout(30):
        while len(api.worker.turns) < 3:
            await asyncio.sleep(0.01)

    lines = (await api.client.get("/metrics")).text.splitlines()

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert 'inferflux_stream_tokens_total{model="org/small"} 4.0' in lines
    assert 'inferflux_request_success_total{finished_reason="stop",model="org/small"} 2.0' in lines
    assert 'inferflux_time_to_first_token_seconds_count{model="org/small"} 2.0' in lines
    assert 'inferflux_streams_open{model="org/small"} 1.0' in lines
    assert 'inferflux_queue_depth{model="org/small",service_class="default",tenant="acme"} 1.0' in lines
    assert 'inferflux_kv_pages_in_use{model="org/small",worker="w1"} 0.0' in lines
    assert 'inferflux_workers{model="org/small"} 1.0' in lines
    assert 'inferflux_http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 2.0' in lines
    assert 'inferflux_http_requests_total{method="POST",route="/v1/chat/completions",status="400"} 1.0' in lines
    assert not any("stranger" in line for line in lines)


async def test_worker_that_left_leaves_the_metrics(api: Any) -> None:
    await api.client.get("/metrics")
    await api.worker.leave()
    async with asyncio.timeout(30):
        while api.parts.follower.fleet.workers():
            await asyncio.sleep(0.01)

    assert 'worker="w1"' not in (await api.client.get("/metrics")).text


async def test_admin_shows_everything_that_status_prints(api: Any) -> None:
    api.worker.script = silent
    waiting = asyncio.create_task(api.chat())
    async with asyncio.timeout(30):
        while not api.worker.turns:
            await asyncio.sleep(0.01)

    workers = (await api.client.get("/v1/admin/workers")).json()["data"]
    queue = (await api.client.get("/v1/admin/queue")).json()["data"]
    status = (await api.client.get("/v1/admin/status")).json()

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert workers[0]["worker"] == "w1"
    assert workers[0]["rss_bytes"] == 0
    assert workers[0]["models"][0]["num_slots"] == 4
    assert 0 <= queue[0].pop("oldest_age_s") < 10
    assert queue == [
        {
            "model": "org/small",
            "service_class": "default",
            "tenant": "acme",
            "depth": 1,
            "num_running": 1,
            "num_waiting": 0,
        }
    ]
    assert status["rss_bytes"] > 1_000_000
    assert status["num_streams"] == 1
    assert status["checks"] == {"broker_connected": True, "streams_answer": True, "not_draining": True}


async def test_every_route_is_documented_and_answers_as_documented(api: Any) -> None:
    served = {
        (method.lower(), route.path_format.replace(":path", ""))
        for route in api.app.routes
        if isinstance(route, HTTPRoute)
        for method in route.methods
        if method not in ("OPTIONS", "HEAD")
    }
    document = (await api.client.get("/openapi.json")).json()

    assert {(each.method, each.path) for each in OPERATIONS} == served
    assert set(document["paths"]) == {path for _, path in served}
    chat = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "temperature", "logit_bias"} <= set(chat)


async def test_docs_page_loads_nothing(api: Any) -> None:
    page = (await api.client.get("/docs")).text

    assert "max_completion_tokens" in page
    assert "http" not in page.replace("HTTP", "")
    assert "<script" not in page


def test_ids_name_their_owner_and_bind_their_tenant() -> None:
    stamper = Stamper(b"a secret of sixteen bytes")
    identity = Identity(stamper)
    key = identity.new_key("acme")

    replica, random, tag = key.request.split("-")
    assert key.owner == f"a-{replica}"
    assert (len(replica), len(random)) == (8, 16)
    assert tag == stamper.tag(f"{replica}-{random}", "acme") != stamper.tag(f"{replica}-{random}", "other")
    assert identity.new_key("acme") != key


def test_process_imports_no_model_library() -> None:
    code = (
        "import inferflux.api.__main__, sys;sys.exit(' '.join({'torch', 'llama_cpp', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
