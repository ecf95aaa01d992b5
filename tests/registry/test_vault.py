"""The sealed policy store: what it keeps secret, and every way to change it from outside that it notices."""

from __future__ import annotations

import asyncio
import json

import pytest

from inferflux.broker.broker import Entry
from inferflux.broker.errors import ConfigError
from inferflux.broker.memory import MemoryBroker
from inferflux.broker.subjects import BUCKET_POLICY, BUCKET_TENANTS, KEY_FAIRNESS, KEY_MANIFEST
from inferflux.broker.wire.policies import Fairness
from inferflux.registry import passphrase
from inferflux.registry.fairness import FairnessStore, fairness_document
from inferflux.registry.identities import ApiKeys, TenantRecords
from inferflux.registry.passphrase import WrongPassphrase, new_key, unwrap, wrap
from inferflux.registry.sealing import open_store, open_vault, rewrap, seal_entries, verify
from inferflux.registry.store import Follower, PolicyStore, RecordRefused
from inferflux.registry.vault import Vault

WORDS = "correct horse battery"
BUCKETS = (BUCKET_POLICY, BUCKET_TENANTS)


async def sealed(broker: MemoryBroker, words: str = WORDS) -> PolicyStore:
    return await open_store(broker, words, may_create=True)


async def raw(broker: MemoryBroker, bucket: str, key: str) -> Entry:
    entry = await (await broker.bucket(bucket)).get(key)
    assert entry is not None
    return entry


async def put(broker: MemoryBroker, bucket: str, key: str, value: bytes) -> None:
    await (await broker.bucket(bucket)).put(key, value)


async def weigh(store: PolicyStore, weight: float) -> None:
    await FairnessStore(store).change({"acme": weight}, {})


class TestPassphrase:
    def test_the_right_one_opens_and_no_other(self) -> None:
        key = new_key()
        record = wrap(key, WORDS)
        assert unwrap(record, WORDS) == key
        with pytest.raises(WrongPassphrase, match="INFERFLUX_POLICY_PASSPHRASE"):
            unwrap(record, WORDS + ".")
        assert record.wrapped != wrap(key, WORDS).wrapped

    def test_a_short_one_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="8 characters"):
            wrap(new_key(), "1234567")

    @pytest.mark.parametrize("field", ["n", "r", "p"])
    def test_a_record_cannot_ask_for_all_memory_or_less_work(self, field: str) -> None:
        record = wrap(new_key(), WORDS)
        for value in (0, -1, 3, 2**40):
            changed = type(record)(
                **{name: getattr(record, name) for name in record.__struct_fields__} | {field: value}
            )
            with pytest.raises(WrongPassphrase):
                unwrap(changed, WORDS)

    def test_the_cost_of_a_guess_is_what_the_documents_say(self) -> None:
        assert 128 * passphrase.COST * passphrase.BLOCK == 64 * 1024 * 1024


class TestSealing:
    async def test_nothing_can_be_read_without_the_passphrase(self, broker: MemoryBroker) -> None:
        store = await sealed(broker)
        await weigh(store, 4.0)
        _, key = await ApiKeys(store).create(
            tenant="a-secret-customer", scopes=("read",), models=(), name="", now_s=0.0, expires=None
        )
        stored = b"".join([(await raw(broker, BUCKET_POLICY, KEY_FAIRNESS)).value or b"", *await values(broker)])
        # Each with a character that the text of sealed bytes never has.
        for secret in (b'"acme', b"a-secret-customer", b'"weights', key.encode(), WORDS.encode()):
            assert secret not in stored
        assert (await FairnessStore(await sealed(broker)).read()).weights == {"acme": 4.0}

    async def test_a_wrong_or_missing_passphrase_does_not_start(self, broker: MemoryBroker) -> None:
        await weigh(await sealed(broker), 4.0)
        with pytest.raises(ConfigError, match="does not open"):
            await sealed(broker, "another passphrase")
        with pytest.raises(ConfigError, match="set INFERFLUX_POLICY_PASSPHRASE"):
            await open_store(broker, None, may_create=True)

    async def test_a_new_passphrase_rewraps_one_record_and_processes_go_on(self, broker: MemoryBroker) -> None:
        running = await sealed(broker)
        await weigh(running, 4.0)
        before = await raw(broker, BUCKET_POLICY, KEY_FAIRNESS)

        await rewrap(broker, WORDS, "an even better one")

        assert await raw(broker, BUCKET_POLICY, KEY_FAIRNESS) == before
        await weigh(running, 5.0)
        assert (await FairnessStore(await sealed(broker, "an even better one")).read()).weights == {"acme": 5.0}
        with pytest.raises(ConfigError):
            await sealed(broker)
        with pytest.raises(WrongPassphrase):
            await rewrap(broker, WORDS, "whatever else")

    async def test_replicas_that_start_at_once_share_one_key(self, broker: MemoryBroker) -> None:
        stores = await asyncio.gather(*(sealed(broker) for _ in range(4)))
        await asyncio.gather(*(TenantRecords(store).change(f"t{n}", {"weight": 2.0}) for n, store in enumerate(stores)))
        for store in stores:
            assert len(await TenantRecords(store).all()) == 4
        assert await verify(broker, await vault_of(broker)) == []

    async def test_a_worker_waits_for_the_key(self, broker: MemoryBroker) -> None:
        waiting = asyncio.create_task(open_store(broker, WORDS, may_create=False))
        await asyncio.sleep(0)
        await weigh(await sealed(broker), 3.0)
        async with asyncio.timeout(30):
            assert (await FairnessStore(await waiting).read()).weights == {"acme": 3.0}

    async def test_races_lose_nothing(self, broker: MemoryBroker) -> None:
        stores = [await sealed(broker) for _ in range(3)]
        await asyncio.gather(*(FairnessStore(stores[n % 3]).change({f"t{n}": 2.0}, {}) for n in range(12)))
        assert len((await FairnessStore(await sealed(broker)).read()).weights) == 12

    async def test_a_plain_store_is_sealed_on_demand(self, broker: MemoryBroker) -> None:
        plain = PolicyStore(broker)
        await weigh(plain, 4.0)
        await TenantRecords(plain).change("acme", {"weight": 2.0})
        with pytest.raises(ConfigError, match="inferctl admin policy seal"):
            await sealed(broker)

        names = ["policy/fairness", "tenants/tenant.acme"]
        assert await seal_entries(broker, WORDS, dry_run=True) == names
        assert await seal_entries(broker, WORDS) == names
        assert await seal_entries(broker, WORDS) == []

        store = await sealed(broker)
        assert (await FairnessStore(store).read()).weights == {"acme": 4.0}
        assert (await TenantRecords(store).all())[0].weight == 2.0

    async def test_an_interrupted_seal_goes_on(self, broker: MemoryBroker) -> None:
        await weigh(PolicyStore(broker), 4.0)
        await seal_entries(broker, WORDS)
        await put(broker, BUCKET_TENANTS, "tenant.acme", b'{"id":"acme"}')
        assert await seal_entries(broker, WORDS) == ["tenants/tenant.acme"]
        await sealed(broker)

    async def test_a_deleted_entry_stays_deleted_and_can_be_made_again(self, broker: MemoryBroker) -> None:
        records = TenantRecords(await sealed(broker))
        await records.change("acme", {"weight": 2.0})
        assert await records.delete("acme")
        assert not await records.delete("acme")
        again = TenantRecords(await sealed(broker))
        assert await again.all() == []
        assert (await again.change("acme", {"max_running": 3})).weight is None


async def values(broker: MemoryBroker) -> list[bytes]:
    return [entry.value or b"" for name in BUCKETS for entry in await (await broker.bucket(name)).entries()]


async def vault_of(broker: MemoryBroker) -> Vault:
    vault = await open_vault(broker, WORDS)
    assert vault is not None
    return vault


class TestTampering:
    """Somebody may write to KV, but has no passphrase."""

    async def refused(self, store: PolicyStore, broker: MemoryBroker, says: str) -> None:
        """By a process that runs, and by one that starts."""
        with pytest.raises(RecordRefused, match=says):
            await FairnessStore(store).read()
        assert says in store.refused[BUCKET_POLICY, KEY_FAIRNESS]
        with pytest.raises(ConfigError, match=f"will not start.*policy/fairness: .*{says}"):
            await sealed(broker)

    async def test_plain_text_is_refused(self, broker: MemoryBroker) -> None:
        store = await sealed(broker)
        await weigh(store, 4.0)
        await put(broker, BUCKET_POLICY, KEY_FAIRNESS, b'{"weights":{"acme":9}}')
        await self.refused(store, broker, "not sealed")

    async def test_a_changed_byte_is_refused(self, broker: MemoryBroker) -> None:
        store = await sealed(broker)
        await weigh(store, 4.0)
        record = json.loads((await raw(broker, BUCKET_POLICY, KEY_FAIRNESS)).value or b"")
        for field, value in (("box", "AAAA" + record["box"][4:]), ("nonce", "AAAA" + record["nonce"][4:])):
            await put(broker, BUCKET_POLICY, KEY_FAIRNESS, json.dumps(record | {field: value}).encode())
            await self.refused(store, broker, "was changed")
        await put(broker, BUCKET_POLICY, KEY_FAIRNESS, json.dumps(record | {"generation": 7}).encode())
        await self.refused(store, broker, "was changed")

    async def test_a_record_of_another_key_is_refused(self, broker: MemoryBroker) -> None:
        store = await sealed(broker)
        await weigh(store, 4.0)
        await TenantRecords(store).change("acme", {"weight": 2.0})
        other = await raw(broker, BUCKET_TENANTS, "tenant.acme")
        await put(broker, BUCKET_POLICY, KEY_FAIRNESS, other.value or b"")
        await self.refused(store, broker, "was changed, moved here")

    async def test_a_record_from_an_earlier_time_is_refused(self, broker: MemoryBroker) -> None:
        store = await sealed(broker)
        await weigh(store, 4.0)
        earlier = await raw(broker, BUCKET_POLICY, KEY_FAIRNESS)
        await weigh(store, 1.0)
        await put(broker, BUCKET_POLICY, KEY_FAIRNESS, earlier.value or b"")
        await self.refused(store, broker, "of generation 1")

    async def test_a_missing_record_is_refused(self, broker: MemoryBroker) -> None:
        store = await sealed(broker)
        await weigh(store, 4.0)
        await (await broker.bucket(BUCKET_POLICY)).delete(KEY_FAIRNESS)
        await self.refused(store, broker, "is gone")

    async def test_a_revoked_key_cannot_be_put_back(self, broker: MemoryBroker) -> None:
        keys = ApiKeys(await sealed(broker))
        made, _ = await keys.create(tenant="acme", scopes=("read",), models=(), name="", now_s=0.0, expires=None)
        valid = await raw(broker, BUCKET_TENANTS, f"key.{made.id}")
        await keys.revoke(made.id)
        await put(broker, BUCKET_TENANTS, f"key.{made.id}", valid.value or b"")
        assert await keys.all() == []
        with pytest.raises(ConfigError, match="generation 1, and there was a 2"):
            await sealed(broker)

    async def test_a_missing_or_older_manifest_does_not_start(self, broker: MemoryBroker) -> None:
        store = await sealed(broker)
        await weigh(store, 4.0)
        await (await broker.bucket(BUCKET_POLICY)).delete(KEY_MANIFEST)
        with pytest.raises(ConfigError, match="policy/manifest: it is gone"):
            await sealed(broker)

    async def test_a_manifest_that_a_crash_left_behind_is_brought_up(self, broker: MemoryBroker) -> None:
        store = await sealed(broker)
        await weigh(store, 4.0)
        behind = (await raw(broker, BUCKET_POLICY, KEY_MANIFEST)).value or b""
        vault = await vault_of(broker)
        await verify(broker, vault)
        entry = await raw(broker, BUCKET_POLICY, KEY_FAIRNESS)
        closed = vault.close(BUCKET_POLICY, KEY_FAIRNESS, b'{"weights":{"acme":6}}', entry.revision)
        await put(broker, BUCKET_POLICY, KEY_FAIRNESS, closed or b"")
        assert (await raw(broker, BUCKET_POLICY, KEY_MANIFEST)).value == behind

        later = await sealed(broker)
        assert (await FairnessStore(later).read()).weights == {"acme": 6.0}
        await TenantRecords(later).change("acme", {"weight": 2.0})
        generations = (await vault_of(broker)).generations
        assert generations == {}
        fresh = await vault_of(broker)
        await verify(broker, fresh)
        assert fresh.generations == {"policy/fairness": 2, "tenants/tenant.acme": 1}

    async def test_what_is_refused_is_not_applied_and_a_good_record_is_again(self, broker: MemoryBroker) -> None:
        store = await sealed(broker)
        heard: asyncio.Queue[Fairness] = asyncio.Queue()
        follower = Follower(store, BUCKET_POLICY)
        follower.follow(fairness_document(store), heard.put_nowait)
        running = asyncio.create_task(follower.run())
        try:
            async with asyncio.timeout(30):
                await weigh(store, 4.0)
                assert (await heard.get()).weights == {"acme": 4.0}
                good = await raw(broker, BUCKET_POLICY, KEY_FAIRNESS)
                await put(broker, BUCKET_POLICY, KEY_FAIRNESS, b"{}")
                await (await broker.bucket(BUCKET_POLICY)).delete(KEY_FAIRNESS)
                await put(broker, BUCKET_POLICY, KEY_FAIRNESS, good.value or b"")
                assert (await heard.get()).weights == {"acme": 4.0}
                assert not store.refused
                await weigh(store, 5.0)
                assert (await heard.get()).weights == {"acme": 5.0}
            assert heard.empty()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def test_no_false_alarm_when_many_change_and_many_follow(
        self, broker: MemoryBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        stores = [await sealed(broker) for _ in range(3)]
        followers = [Follower(store, bucket) for store in stores for bucket in BUCKETS]
        running = [asyncio.create_task(follower.run()) for follower in followers]
        try:
            for number in range(10):
                changes = (TenantRecords(store).change("acme", {"weight": number + 1.0}) for store in stores)
                await asyncio.gather(*changes, weigh(stores[0], number + 1.0))
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        assert "refused" not in caplog.text
        assert not any(store.refused for store in stores)
