"""API keys and tenants that operators make, change and take back while replicas serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from harness.scripted_worker import silent

from inferflux.registry.identities import KEY_PREFIX, ApiKeys
from inferflux.registry.store import PolicyStore

KEYS = "/v1/admin/api_keys"
TENANTS = "/v1/admin/tenants"


async def soon(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until every replica has heard."""
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.005)


async def create(api: Any, **fields: Any) -> dict[str, Any]:
    answer = await api.client.post(KEYS, json=fields)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return dict(answer.json())


def models(api: Any, key: str) -> Awaitable[httpx.Response]:
    answer: Awaitable[httpx.Response] = api.client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    return answer


class TestKeys:
    async def test_a_new_key_works_on_every_replica_within_a_second_until_it_is_revoked(self, apis: Any) -> None:
        one = await apis.start()
        two = await apis.start(beside=one)
        made = await create(one, tenant="acme", scopes=["read"], name="a dashboard")

        async def known() -> bool:
            return {(await models(api, made["key"])).status_code for api in (one, two)} == {200}

        async def refused() -> bool:
            return {(await models(api, made["key"])).status_code for api in (one, two)} == {401}

        await soon(known)
        assert (await two.chat(made["key"])).json()["error"]["code"] == "insufficient_scope"
        assert (await two.client.delete(f"{KEYS}/{made['id']}")).json() == {
            "id": made["id"],
            "revoked": True,
            "dry_run": False,
        }
        await soon(refused)
        assert (await one.client.delete(f"{KEYS}/{made['id']}")).status_code == 404

    async def test_the_key_is_shown_once_and_stored_nowhere(self, api: Any) -> None:
        made = await create(api, tenant="acme")
        listed = (await api.client.get(KEYS)).json()["data"]

        (entry,) = [each for each in listed if each["id"] == made["id"]]
        assert entry | {"key": made["key"]} == {name: value for name, value in made.items() if name != "dry_run"}
        secret = made["key"].removeprefix(f"{KEY_PREFIX}{made['id']}-")
        assert len(secret) > 32
        bucket = await api.broker.bucket("tenants")
        assert all(secret.encode() not in (each.value or b"") for each in await bucket.entries())
        assert secret not in str(listed)

    async def test_keys_of_the_settings_are_listed_and_stay(self, api: Any) -> None:
        listed = (await api.client.get(KEYS)).json()["data"]
        assert {each["origin"] for each in listed} == {"settings"}
        assert "key-all" not in str(listed)

        answer = await api.client.delete(f"{KEYS}/{listed[0]['id']}")

        assert answer.status_code == 400
        assert "auth.api_keys" in answer.json()["error"]["message"]
        assert (await models(api, "key-all")).status_code == 200

    async def test_a_key_is_bound_to_its_models_and_without_a_tenant_is_its_own(self, api: Any) -> None:
        made = await create(api, models=["big"])
        assert made["tenant"] == f"key-{made['id']}"

        async def known() -> bool:
            return (await models(api, made["key"])).status_code == 200

        await soon(known)
        assert [each["id"] for each in (await models(api, made["key"])).json()["data"]] == ["big"]
        assert (await api.chat(made["key"], model="small")).json()["error"]["code"] == "model_not_allowed"

    async def test_an_expired_key_is_refused(self, api: Any) -> None:
        _, key = await ApiKeys(PolicyStore(api.broker)).create(
            tenant="acme", scopes=("read",), models=(), name="", now_s=time.time() - 60, expires=time.time() - 1
        )
        _, good = await ApiKeys(PolicyStore(api.broker)).create(
            tenant="acme", scopes=("read",), models=(), name="", now_s=time.time(), expires=time.time() + 60
        )

        async def known() -> bool:
            return (await models(api, good)).status_code == 200

        await soon(known)
        answer = await models(api, key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert [each["expired"] for each in (await api.client.get(KEYS)).json()["data"]][-2:] == [True, False]

    async def test_a_dry_run_makes_and_revokes_nothing(self, api: Any) -> None:
        answer = await api.client.post(KEYS, json={"tenant": "acme"}, params={"dry_run": "true"})
        assert (answer.status_code, answer.json()["key"], answer.json()["tenant"]) == (200, None, "acme")
        made = await create(api, tenant="acme")
        gone = await api.client.delete(f"{KEYS}/{made['id']}", params={"dry_run": "true"})
        assert gone.json() == {"id": made["id"], "revoked": False, "dry_run": True}
        listed = (await api.client.get(KEYS)).json()["data"]
        assert [each["id"] for each in listed if each["origin"] == "created"] == [made["id"]]

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"scopes": []}, "scopes"),
            ({"scopes": ["root"]}, "scopes"),
            ({"tenant": ""}, "tenant"),
            ({"tenant": "\u00fc" * 150}, "tenant"),
            ({"expires_in_s": 0}, "expires_in_s"),
            ({"expires_in_s": 1e300}, "expires_in_s"),
            ({"key": "chosen"}, "key"),
        ],
    )
    async def test_a_bad_body_names_the_field(self, api: Any, body: dict[str, Any], param: str) -> None:
        answer = await api.client.post(KEYS, json=body)
        assert answer.status_code == 400
        assert param in answer.json()["error"]["param"]

    @pytest.mark.parametrize("key_id", ["nothing", "a.b", "%2e%2e", "x" * 500, "%00"])
    async def test_what_is_no_key_cannot_be_revoked(self, api: Any, key_id: str) -> None:
        assert (await api.client.delete(f"{KEYS}/{key_id}")).status_code == 404

    @pytest.mark.parametrize(
        ("method", "path"), [("GET", KEYS), ("POST", KEYS), ("DELETE", f"{KEYS}/x"), ("GET", TENANTS)]
    )
    async def test_only_admins_may(self, api: Any, method: str, path: str) -> None:
        for key in ("key-read", "key-generate"):
            answer = await api.client.request(method, path, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 403


class TestTenants:
    async def test_changes_are_in_force_on_every_replica_and_are_given_back(self, apis: Any) -> None:
        one = await apis.start()
        two = await apis.start(beside=one)

        answer = await one.client.put(f"{TENANTS}/acme", json={"classes": ["batch"], "weight": 3, "cache_group": "g"})

        assert answer.status_code == 200
        assert answer.json()["changed"] == ["weight", "classes", "cache_group"]
        tenants = [api.parts.control.tenants for api in (one, two)]

        async def changed() -> bool:
            return all(each.tenant("acme").weight == 3 and each.tenant("acme").salt == "group:g" for each in tenants)

        await soon(changed)
        refusal = await two.chat(service_tier="priority")
        assert refusal.json()["error"]["code"] == "class_not_allowed"
        back = await two.client.put(f"{TENANTS}/acme", json={"classes": None})
        assert back.json()["classes"] == ["priority", "default", "batch"]
        assert (await one.client.delete(f"{TENANTS}/acme")).json()["deleted"]

        async def given_back() -> bool:
            return all(each.tenant("acme").weight == 1 and not each.tenant("acme").cache_group for each in tenants)

        await soon(given_back)
        assert (await one.client.delete(f"{TENANTS}/acme")).status_code == 404

    async def test_a_bound_is_in_force_for_the_next_request(self, api: Any) -> None:
        api.worker.script = silent
        assert (await api.client.put(f"{TENANTS}/acme", json={"max_queued": 1})).json()["max_queued"] == 1

        async def bounded() -> bool:
            return api.parts.control.tenants.tenant("acme").max_queued == 1

        await soon(bounded)
        waiting = asyncio.create_task(api.chat())
        await api.until_running()
        refusal = await api.chat()
        assert refusal.json()["error"]["code"] == "queue_full"
        waiting.cancel()

    async def test_a_weight_of_the_fairness_document_wins(self, api: Any) -> None:
        await api.client.put("/v1/admin/fairness", json={"weights": {"acme": 7}})
        await api.client.put(f"{TENANTS}/acme", json={"weight": 2})

        async def weighed() -> bool:
            return (await api.client.get(f"{TENANTS}/acme")).json()["weight"] == 7.0

        await soon(weighed)
        await api.client.put("/v1/admin/fairness", json={"weights": {"acme": None}})

        async def own() -> bool:
            return (await api.client.get(f"{TENANTS}/acme")).json()["weight"] == 2.0

        await soon(own)

    async def test_every_tenant_is_listed_with_its_origin(self, api: Any) -> None:
        await api.client.put(f"{TENANTS}/org/new one", json={})
        listed = {each["id"]: each for each in (await api.client.get(TENANTS)).json()["data"]}
        assert listed["acme"]["origin"] == "settings"
        assert listed["org/new one"]["origin"] == "created"
        assert listed["org/new one"]["classes"] == ["default", "batch"]

    async def test_a_dry_run_changes_nothing(self, api: Any) -> None:
        dry = {"dry_run": "true"}
        answer = await api.client.put(f"{TENANTS}/acme", json={"weight": 5}, params=dry)
        assert (answer.json()["weight"], answer.json()["dry_run"]) == (5.0, True)
        assert (await api.client.get(f"{TENANTS}/acme")).json()["weight"] == 1.0
        assert (await api.client.delete(f"{TENANTS}/acme", params=dry)).status_code == 404

    @pytest.mark.parametrize(
        "body", [{"weight": 0}, {"weight": "x"}, {"classes": []}, {"max_running": 0}, {"nothing": 1}, {"id": "other"}]
    )
    async def test_a_bad_body_names_the_field(self, api: Any, body: dict[str, Any]) -> None:
        answer = await api.client.put(f"{TENANTS}/acme", json=body)
        assert answer.status_code == 400
        assert next(iter(body)) in answer.json()["error"]["param"]

    async def test_a_name_that_no_subject_can_carry_is_refused(self, api: Any) -> None:
        answer = await api.client.put(f"{TENANTS}/{'x' * 300}", json={})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tenant")
