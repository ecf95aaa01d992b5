"""Models, names, bounds and caches over the admin API, and what clients see of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from harness.fleet import deadline

from inferflux.broker.subjects import BUCKET_WORKERS
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.fleet import ModelBeat, WorkerBeat
from inferflux.broker.wire.policies import ModelRecord, ModelRegistry
from inferflux.config.settings import RegistrySettings
from inferflux.registry.listing import Listing
from inferflux.registry.models import listed

PATH = "/v1/admin/models"


class Operator:
    """Calls the admin API of a replica whose registry file lists the model `base`."""

    def __init__(self, api: Any) -> None:
        self.api = api

    async def call(self, method: str, path: str, body: Any = None, *, status: int = 200, **query: str) -> Any:
        response = await self.api.client.request(method, path, json=body, params=query or None)
        assert response.status_code == status, response.text
        return response.json()

    async def refused(self, method: str, path: str, body: Any = None, *, status: int = 400) -> dict[str, Any]:
        return dict((await self.call(method, path, body, status=status))["error"])

    async def offered(self, wanted: set[str]) -> dict[str, Any]:
        """What /v1/models says, once it offers exactly these."""
        async with deadline(30, f"the models are {wanted}"):
            while True:
                data = (await self.call("GET", "/v1/models"))["data"]
                if {model["id"] for model in data} == wanted:
                    return {model["id"]: model for model in data}
                await asyncio.sleep(0.005)

    async def beat(self, *models: ModelBeat) -> None:
        """A worker with these models."""
        beat = WorkerBeat(worker="w1", epoch="e", host="h", pid=1, started=0.0, at=0.0, models=models)
        await (await self.api.broker.bucket(BUCKET_WORKERS)).put("w1", encode(beat), ttl_s=30)


@pytest.fixture
async def operator(apis: Any, tmp_path: Path) -> Operator:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.gguf").touch()
    registry = RegistrySettings(path=str(tmp_path / "registry.yaml"), roots=(str(tmp_path / "models"),))
    made = Operator(await apis.start(msgspec.structs.replace(apis.settings, registry=registry), worker=False))
    listing = Listing((ModelRecord(id="base", backend="stub"),), "base")
    await made.api.parts.model_store.amend(lambda now: listed(now, listing))
    await made.offered({"base"})
    return made


async def test_a_model_is_loaded_becomes_the_default_and_goes(operator: Operator) -> None:
    body = {"id": "org/big:v1", "path": "a.gguf", "default": True, "aliases": ["big"], "max_batch_size": 4}
    answer = await operator.call("POST", PATH, body)

    assert answer["default"] == "org/big:v1"
    assert [(model["id"], model["owner"], model["state"]) for model in answer["data"]] == [
        ("base", "file", "no_worker"),
        ("org/big:v1", "admin", "no_worker"),
    ]
    offered = await operator.offered({"base", "org/big:v1"})
    assert offered["org/big:v1"]["default"]
    assert (await operator.call("GET", "/v1/models/big"))["id"] == "org/big:v1"

    await operator.call("DELETE", f"{PATH}/org/big:v1")
    await operator.offered({"base"})
    error = await operator.refused("GET", "/v1/models/big", status=404)
    assert error["code"] == "model_not_found"


async def test_the_state_of_each_worker_is_told(operator: Operator) -> None:
    await operator.call("POST", PATH, {"id": "b", "backend": "stub"})
    digest = next(entry.digest for entry in operator.api.parts.gateway.models if entry.id == "base")
    await operator.beat(
        ModelBeat(id="base", backend="stub", digest=digest, num_slots=8),
        ModelBeat(id="b", backend="stub", state="loading", progress=0.4),
        ModelBeat(id="old", backend="stub", state="unloading"),
    )
    async with deadline(30, "the heartbeat is known"):
        while len((answer := await operator.call("GET", PATH))["data"]) < 3:
            await asyncio.sleep(0.005)

    base, loading, old = answer["data"]
    assert (base["state"], base["workers"][0]["current"], base["workers"][0]["num_slots"]) == ("ready", True, 8)
    assert (loading["state"], loading["workers"][0]["progress"]) == ("loading", 0.4)
    assert (old["owner"], old["state"]) == (None, "unloading")
    ready = (await operator.api.client.get("/readyz")).json()
    assert ready["models"] == {"base": "ready", "b": "loading"}


async def test_a_dry_run_changes_nothing(operator: Operator) -> None:
    before = await operator.api.parts.model_store.read()
    answer = await operator.call("POST", PATH, {"id": "b", "backend": "stub", "default": True}, dry_run="true")
    assert (answer["dry_run"], answer["default"]) == (True, "b")
    await operator.call("PUT", f"{PATH}/default", {"id": "base"}, dry_run="true")
    await operator.call("POST", f"{PATH}/reload", {"id": "base"}, dry_run="true")
    await operator.call("PUT", "/v1/admin/routing", {"model": "base", "aliases": ["x"]}, dry_run="true")
    await operator.call("PUT", "/v1/admin/scheduler", {"model": "base", "max_batch_size": 2}, dry_run="true")
    await operator.call("DELETE", "/v1/admin/cache", dry_run="true")
    await operator.call("POST", "/v1/admin/cache/warm", {"prompt": "hello"}, dry_run="true")

    assert await operator.api.parts.model_store.read() == before
    cache = await operator.call("GET", "/v1/admin/cache")
    assert cache["warm"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"id": "b", "path": "../registry.yaml"}, "path"),
        ({"id": "b", "path": "/etc/passwd"}, "path"),
        ({"id": "b", "path": "missing.gguf"}, "path"),
        ({"id": "b"}, "path"),
        ({"id": "b\nInjected: header", "backend": "stub"}, "id"),
        ({"id": "reload", "backend": "stub"}, "id"),
        ({"id": "base", "backend": "stub"}, "id"),
        ({"id": "b", "backend": "stub", "max_batch_size": 0}, "max_batch_size"),
        ({"id": "b", "backend": "vllm"}, "backend"),
        ({"id": "b", "backend": "stub", "pth": "x"}, "pth"),
    ],
)
async def test_what_cannot_be_loaded_is_refused_by_its_field(
    operator: Operator, body: dict[str, Any], param: str
) -> None:
    error = await operator.refused("POST", PATH, body)

    assert error["param"] == param
    assert [model["id"] for model in (await operator.call("GET", PATH))["data"]] == ["base"]


async def test_the_default_is_chosen_and_given_back(operator: Operator) -> None:
    await operator.call("POST", PATH, {"id": "b", "backend": "stub"})
    assert await operator.call("PUT", f"{PATH}/default", {"id": "b"}) == {
        "id": "b",
        "chosen": "b",
        "listed": "base",
        "dry_run": False,
    }
    assert (await operator.call("PUT", f"{PATH}/default", {"id": None}))["id"] == "base"
    assert (await operator.refused("PUT", f"{PATH}/default", {"id": "x"}, status=404))["code"] == "model_not_found"


async def test_names_classes_and_bounds_change_and_are_given_back(operator: Operator) -> None:
    changed = await operator.call("PUT", "/v1/admin/routing", {"model": "base", "aliases": ["x"], "hardware": "gpu"})
    assert changed["data"][0] == {
        "model": "base",
        "aliases": ["x"],
        "hardware": "gpu",
        "default": True,
        "changed": ["aliases", "hardware"],
    }
    back = await operator.call("PUT", "/v1/admin/routing", {"model": "x", "aliases": None, "hardware": None})
    assert (back["data"][0]["aliases"], back["data"][0]["changed"]) == ([], [])

    bounds = await operator.call("PUT", "/v1/admin/scheduler", {"model": "base", "max_batch_size": 2})
    assert bounds["data"][0]["max_batch_size"] == 2
    assert bounds["data"][0]["changed"] == ["max_batch_size"]
    await operator.refused("PUT", "/v1/admin/scheduler", {"model": "base", "max_batch_size": 0})


async def test_prefixes_are_kept_warm_for_a_tenant_and_cleared(operator: Operator) -> None:
    await operator.call("POST", "/v1/admin/cache/warm", {"prompt": "hello"})
    body = {"messages": [{"role": "system", "content": "Be brief."}], "tenant": "bounded"}
    for _ in range(2):
        answer = await operator.call("POST", "/v1/admin/cache/warm", body)

    assert [(each["tenant"], each["num_chars"]) for each in answer["warm"]] == [("acme", 5), ("bounded", 9)]
    assert "Be brief" not in msgspec.json.encode(answer).decode()
    assert (await operator.call("DELETE", "/v1/admin/cache", model="base"))["warm"] == []
    await operator.refused("POST", "/v1/admin/cache/warm", {"prompt": "a", **body})
    await operator.refused("POST", "/v1/admin/cache/warm", {})
    await operator.call("DELETE", "/v1/admin/cache", model="x", status=404)


async def test_others_have_no_say(operator: Operator) -> None:
    client: httpx.AsyncClient = operator.api.client
    for method, path in (("GET", PATH), ("POST", PATH), ("DELETE", f"{PATH}/base"), ("DELETE", "/v1/admin/cache")):
        response = await client.request(method, path, json={}, headers={"authorization": "Bearer key-read"})
        assert response.status_code == 403


async def test_the_registry_can_be_empty(operator: Operator) -> None:
    await operator.api.parts.model_store.amend(lambda _: ModelRegistry())
    offered = await operator.offered({"stub"})
    assert offered["stub"]["stub_reason"] == "no model is configured"
