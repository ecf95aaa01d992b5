"""A sealed policy store behind the admin API: what is refused is told, and put back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from inferflux.broker.subjects import BUCKET_POLICY, KEY_FAIRNESS
from inferflux.registry.passphrase import new_key
from inferflux.registry.vault import Vault

POLICY = "/v1/admin/policy"


@pytest.fixture
async def sealed(api: Any) -> Any:
    api.parts.control.store.seal = Vault(new_key())
    await api.client.put("/v1/admin/fairness", json={"weights": {"acme": 4}})
    await weight(api, 4.0)
    return api


async def weight(api: Any, value: float) -> None:
    async with asyncio.timeout(30):
        while api.parts.control.tenants.tenant("acme").weight != value:
            await asyncio.sleep(0.005)


async def tamper(api: Any) -> None:
    await (await api.broker.bucket(BUCKET_POLICY)).put(KEY_FAIRNESS, b'{"weights":{"acme":9}}')
    async with asyncio.timeout(30):
        while not api.parts.control.store.refused:
            await asyncio.sleep(0.005)


async def test_a_plain_store_says_so(api: Any) -> None:
    assert (await api.client.get(POLICY)).json() == {"sealed": False, "generation": 0, "num_entries": 0, "refused": []}
    assert (await api.client.post(f"{POLICY}/repair")).status_code == 400


async def test_what_is_refused_is_not_in_force_and_is_told(sealed: Any) -> None:
    assert (await sealed.client.get(POLICY)).json() == {
        "sealed": True,
        "generation": 1,
        "num_entries": 1,
        "refused": [],
    }
    await tamper(sealed)

    assert sealed.parts.control.tenants.tenant("acme").weight == 4.0
    ready = (await sealed.client.get("/readyz")).json()
    assert (ready["status"], ready["notes"]["policy_intact"]) == ("ok", False)
    assert "inferflux_policy_refused_entries 1.0" in (await sealed.client.get("/metrics")).text
    (refused,) = (await sealed.client.get(POLICY)).json()["refused"]
    assert refused == {"bucket": "policy", "key": "fairness", "reason": "it is not sealed"}
    change = await sealed.client.put("/v1/admin/fairness", json={"weights": {"acme": 5}})
    assert (change.status_code, change.json()["error"]["code"]) == (409, "conflict")
    assert "inferctl admin policy repair" in change.json()["error"]["message"]


async def test_a_repair_puts_back_what_is_in_force(sealed: Any) -> None:
    await tamper(sealed)
    names = ["policy/fairness"]
    dry = await sealed.client.post(f"{POLICY}/repair", params={"dry_run": "true"})
    assert dry.json() == {"repaired": names, "left": [], "dry_run": True}
    assert (await sealed.client.post(f"{POLICY}/repair")).json() == {"repaired": names, "left": [], "dry_run": False}

    assert (await sealed.client.get("/readyz")).json()["notes"]["policy_intact"]
    assert (await sealed.client.put("/v1/admin/fairness", json={"weights": {"acme": 5}})).status_code == 200
    await weight(sealed, 5.0)
