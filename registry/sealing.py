"""Sealing: the policy store opened under a passphrase, sealed for the first time, and given another passphrase."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from inferflux.broker.broker import Broker, Bucket, Entry
from inferflux.broker.errors import ConfigError, RevisionConflict
from inferflux.broker.subjects import BUCKET_POLICY, BUCKET_REGISTRY, BUCKET_TENANTS, KEY_MANIFEST, KEY_VAULT, KEYS_SEAL
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.policies import SealedRecord, VaultKey
from inferflux.config.logs import get_logger

from .passphrase import PASSPHRASE, new_key, unwrap, wrap
from .store import PolicyStore, RecordRefused
from .vault import Vault, read_manifest

log = get_logger("registry.sealing")

SEALED_BUCKETS = (BUCKET_POLICY, BUCKET_REGISTRY, BUCKET_TENANTS)
KEY_WAIT_S = 30.0


async def open_store(broker: Broker, passphrase: str | None, *, may_create: bool) -> PolicyStore:
    """The store as a process may use it: sealed where there is a passphrase, and whole.

    The first API replica seals an empty store; workers, which may not write, wait for it. Raises ConfigError for a
    wrong or missing passphrase, for a store that is not sealed yet, and for one that somebody without the key changed.
    """
    policy = await broker.bucket(BUCKET_POLICY)
    record = await policy.get(KEY_VAULT)
    if passphrase is None:
        if record is not None:
            raise ConfigError(f"the policy store is sealed: set {PASSPHRASE}")
        return PolicyStore(broker)
    if record is None:
        if await _entries(broker):
            raise ConfigError(
                f"{PASSPHRASE} is set, but the policy store holds entries that are not sealed: "
                "run `inferctl admin policy seal` first"
            )
        record = await (_create(policy, passphrase) if may_create else _wait_for_key(policy))
    vault = Vault(await asyncio.to_thread(unwrap, _read_key(record), passphrase))
    problems = await verify(broker, vault, may_write=may_create)
    if problems:
        raise ConfigError(
            "will not start: somebody without the passphrase changed the policy store: "
            + "; ".join(problems[:5])
            + "; import an export with `inferctl admin policy import`, or restore a backup"
        )
    return PolicyStore(broker, vault)


async def open_vault(broker: Broker, passphrase: str) -> Vault | None:
    """The vault of a sealed store, whatever state its entries are in; None where the store is not sealed."""
    record = await (await broker.bucket(BUCKET_POLICY)).get(KEY_VAULT)
    return None if record is None else Vault(await asyncio.to_thread(unwrap, _read_key(record), passphrase))


async def verify(broker: Broker, vault: Vault, *, may_write: bool = False) -> list[str]:
    """What is wrong with the store, entry by entry. The manifest comes first: entries only ever get newer than it."""
    policy = await broker.bucket(BUCKET_POLICY)
    problems: list[str] = []
    manifest = await policy.get(KEY_MANIFEST)
    if manifest is not None:
        try:
            vault.expect(read_manifest(vault, manifest))
        except RecordRefused as error:
            problems.append(f"{BUCKET_POLICY}/{KEY_MANIFEST}: {error}")
    entries = await _entries(broker)
    if manifest is None:
        if entries and await policy.get(KEY_MANIFEST) is not None:
            # Another replica has begun to use an empty store meanwhile.
            return await verify(broker, vault, may_write=may_write)
        if entries:
            problems.append(f"{BUCKET_POLICY}/{KEY_MANIFEST}: it is gone")
        elif may_write:
            await vault.write_manifest(policy)
    found = {(bucket, entry.key): entry for bucket, entry in entries}
    told = [tuple(name.split("/", 1)) for name in vault.generations]
    for bucket, key in sorted({*found, *told}):
        entry = found.get((bucket, key))
        try:
            vault.open(bucket, key, None if entry is None else entry.value, 0 if entry is None else entry.revision)
        except RecordRefused as error:
            problems.append(f"{bucket}/{key}: {error}")
    return problems


async def seal_entries(broker: Broker, passphrase: str, *, dry_run: bool = False) -> list[str]:
    """Seal every entry that is plain, and return their names. A seal that was interrupted goes on."""
    policy = await broker.bucket(BUCKET_POLICY)
    vault = await open_vault(broker, passphrase)
    entries = await _entries(broker)
    plain = [(bucket, entry) for bucket, entry in entries if vault is None or not _is_sealed(vault, bucket, entry)]
    names = [f"{bucket}/{entry.key}" for bucket, entry in plain]
    if dry_run:
        return names
    if vault is None:
        await _create(policy, passphrase)
        vault = await open_vault(broker, passphrase)
    assert vault is not None
    manifest = await policy.get(KEY_MANIFEST)
    if manifest is not None:
        vault.expect(read_manifest(vault, manifest))
    store = PolicyStore(broker, vault)
    for bucket, entry in plain:
        await store.write(bucket, entry.key, entry.value, entry.revision)
    await vault.write_manifest(policy)
    log.info("policy store sealed", num_entries=len(names))
    return names


async def rewrap(broker: Broker, passphrase: str, fresh: str) -> None:
    """Give the store another passphrase; processes that run go on. Raises WrongPassphrase, or ConfigError."""
    policy = await broker.bucket(BUCKET_POLICY)
    while True:
        record = await policy.get(KEY_VAULT)
        if record is None:
            raise ConfigError("the policy store is not sealed: run `inferctl admin policy seal`")
        key = await asyncio.to_thread(unwrap, _read_key(record), passphrase)
        wrapped = await asyncio.to_thread(wrap, key, fresh)
        with contextlib.suppress(RevisionConflict):
            await policy.update(KEY_VAULT, encode(wrapped), record.revision)
            log.info("policy store has a new passphrase")
            return


async def _create(policy: Bucket, passphrase: str) -> Entry:
    wrapped = encode(await asyncio.to_thread(wrap, new_key(), passphrase))
    with contextlib.suppress(RevisionConflict):
        await policy.create(KEY_VAULT, wrapped)
        log.info("policy store is sealed from now on")
    record = await policy.get(KEY_VAULT)
    assert record is not None
    return record


async def _wait_for_key(policy: Bucket) -> Entry:
    try:
        async with asyncio.timeout(KEY_WAIT_S):
            async for entry in policy.watch():
                if entry is not None and entry.key == KEY_VAULT and entry.value is not None:
                    return entry
    except TimeoutError:
        pass
    raise ConfigError(
        f"{PASSPHRASE} is set, but no API replica has sealed the policy store: start `inferctl api` first"
    )


async def _entries(broker: Broker) -> list[tuple[str, Entry]]:
    found = [(name, await (await broker.bucket(name)).entries()) for name in SEALED_BUCKETS]
    return [(name, entry) for name, entries in found for entry in entries if entry.key not in KEYS_SEAL]


def _is_sealed(vault: Vault, bucket: str, entry: Entry) -> bool:
    """Raises ConfigError for what is sealed, but not as it should be."""
    try:
        msgspec.json.decode(entry.value or b"", type=SealedRecord)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    try:
        vault.open(bucket, entry.key, entry.value, entry.revision)
    except RecordRefused as error:
        raise ConfigError(f"{bucket}/{entry.key} was changed by somebody without the passphrase: {error}") from None
    return True


def _read_key(record: Entry) -> VaultKey:
    try:
        return msgspec.json.decode(record.value or b"", type=VaultKey)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the policy store's key record cannot be read: {error}") from None
