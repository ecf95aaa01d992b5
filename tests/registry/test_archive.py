"""Exports of the policy store: encrypted, whole, and able to bring a store back."""

from __future__ import annotations

import json

import pytest

from inferflux.broker.errors import ConfigError
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import BUCKET_POLICY, BUCKET_TENANTS, KEY_FAIRNESS
from inferflux.registry.archive import Item, export, pack, restore, unpack
from inferflux.registry.fairness import FairnessStore
from inferflux.registry.identities import TenantRecords
from inferflux.registry.passphrase import WrongPassphrase
from inferflux.registry.sealing import open_store, open_vault, verify
from inferflux.registry.store import PolicyStore

WORDS = "correct horse battery"


async def filled(broker: MemoryBroker, words: str | None = WORDS) -> PolicyStore:
    store = await open_store(broker, words, may_create=True)
    await FairnessStore(store).change({"acme": 4.0}, {})
    await TenantRecords(store).change("acme", {"max_running": 3})
    return store


async def test_an_export_tells_nothing_and_brings_everything(broker: MemoryBroker) -> None:
    data, num_entries = await export(await filled(broker), WORDS)
    assert num_entries == 2
    # Each with a character that the text of sealed bytes never has.
    assert not [secret for secret in (b'"acme', b"tenant.acme", b'"weights') if secret in data]

    other = MemoryBroker(MemoryHub())
    fresh = await open_store(other, "another passphrase", may_create=True)
    await TenantRecords(fresh).change("globex", {"weight": 9.0})
    items = unpack(data, WORDS)
    done = await restore(other, fresh, items, dry_run=True)
    assert (done.written, done.deleted) == (["policy/fairness", "tenants/tenant.acme"], ["tenants/tenant.globex"])
    assert len(await TenantRecords(fresh).all()) == 1
    assert await restore(other, fresh, items) == done
    assert (await restore(other, fresh, items)).same == ["policy/fairness", "tenants/tenant.acme"]

    again = await open_store(other, "another passphrase", may_create=True)
    assert (await FairnessStore(again).read()).weights == {"acme": 4.0}
    assert [record.id for record in await TenantRecords(again).all()] == ["acme"]


async def test_a_plain_store_can_be_exported_too(broker: MemoryBroker) -> None:
    data, _ = await export(await filled(broker, None), WORDS)
    assert {item.key for item in unpack(data, WORDS)} == {KEY_FAIRNESS, "tenant.acme"}


async def test_an_import_replaces_what_was_tampered_with(broker: MemoryBroker) -> None:
    data, _ = await export(await filled(broker), WORDS)
    await (await broker.bucket(BUCKET_POLICY)).put(KEY_FAIRNESS, b'{"weights":{"acme":9}}')
    await (await broker.bucket(BUCKET_TENANTS)).delete("tenant.acme")
    await (await broker.bucket(BUCKET_TENANTS)).put("tenant.evil", b'{"id":"evil"}')
    with pytest.raises(ConfigError, match="will not start"):
        await open_store(broker, WORDS, may_create=True)

    vault = await open_vault(broker, WORDS)
    assert vault is not None
    assert len(await verify(broker, vault)) == 3
    await restore(broker, PolicyStore(broker, vault), unpack(data, WORDS))

    store = await open_store(broker, WORDS, may_create=True)
    assert (await FairnessStore(store).read()).weights == {"acme": 4.0}
    assert [record.max_running for record in await TenantRecords(store).all()] == [3]


def test_an_export_that_was_changed_is_refused() -> None:
    data = pack([Item("policy", "fairness", b"{}")], WORDS)
    with pytest.raises(WrongPassphrase):
        unpack(data, "something else")
    file = json.loads(data)
    with pytest.raises(ConfigError, match="changed"):
        unpack(json.dumps(file | {"box": "AAAA" + file["box"][4:]}).encode(), WORDS)
    for other in (b"", b"{}", b"\xff", json.dumps(file | {"format": "tar"}).encode()):
        with pytest.raises(ConfigError, match="no export"):
            unpack(other, WORDS)


async def test_an_export_cannot_write_elsewhere(broker: MemoryBroker) -> None:
    with pytest.raises(ConfigError, match="workers"):
        await restore(broker, await filled(broker), [Item("workers", "w", b"{}")])
