"""Identities that change while the fleet runs: API keys and tenants in KV, which operators make and take back."""

from __future__ import annotations

import base64
import contextlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from inferflux.broker.errors import RevisionConflict
from inferflux.broker.subjects import BUCKET_TENANTS, KEYS_API_KEY, KEYS_TENANT, api_key_key, decode_token, tenant_key
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.policies import ApiKey, TenantRecord
from inferflux.config.logs import get_logger
from inferflux.config.settings import Scope

from .store import Document, Follower, PolicyStore
from .tenants import Tenants, key_digest

log = get_logger("registry.identities")

KEY_PREFIX = "ifx-"


class ApiKeys:
    """Makes, lists and revokes keys. Every call may raise BrokerError, and RecordRefused where the store is sealed."""

    def __init__(self, store: PolicyStore) -> None:
        self._store = store

    async def create(
        self,
        *,
        tenant: str | None,
        scopes: Sequence[Scope],
        models: Sequence[str],
        name: str,
        now_s: float,
        expires: float | None,
        dry_run: bool = False,
    ) -> tuple[ApiKey, str]:
        """The record and the key, which is kept nowhere. Without a tenant the key is one of its own."""
        key_id = base64.b32encode(secrets.token_bytes(5)).decode().lower()
        key = f"{KEY_PREFIX}{key_id}-{secrets.token_urlsafe(32)}"
        record = ApiKey(
            id=key_id,
            digest=key_digest(key).hex(),
            tenant=f"key-{key_id}" if tenant is None else tenant,
            scopes=tuple(scopes),
            models=tuple(models),
            name=name,
            created=now_s,
            expires=expires,
        )
        if not dry_run:
            await self._store.write(BUCKET_TENANTS, api_key_key(key_id), encode(record), 0)
            log.info("API key created", key=key_id, tenant=record.tenant, scopes=",".join(scopes))
        return record, key

    async def all(self) -> list[ApiKey]:
        """Every key in KV, by age."""
        entries = await self._store.entries(BUCKET_TENANTS)
        found = [_key(entry.key, entry.value) for entry in entries if entry.key.startswith(KEYS_API_KEY)]
        return sorted((key for key in found if key is not None), key=lambda key: key.created)

    async def get(self, key_id: str) -> ApiKey | None:
        body, _ = await self._store.read(BUCKET_TENANTS, api_key_key(key_id))
        return None if body is None else _key(api_key_key(key_id), body)

    async def revoke(self, key_id: str) -> bool:
        """False when there is no such key."""
        while True:
            body, revision = await self._store.read(BUCKET_TENANTS, api_key_key(key_id))
            if body is None:
                return False
            with contextlib.suppress(RevisionConflict):
                await self._store.write(BUCKET_TENANTS, api_key_key(key_id), None, revision)
                log.info("API key revoked", key=key_id)
                return True


class TenantRecords:
    """What operators say of tenants. Every call may raise BrokerError, and RecordRefused where the store is sealed."""

    def __init__(self, store: PolicyStore) -> None:
        self._store = store

    async def all(self) -> list[TenantRecord]:
        entries = await self._store.entries(BUCKET_TENANTS)
        found = [_record(entry.key, entry.value) for entry in entries if entry.key.startswith(KEYS_TENANT)]
        return [record for record in found if record is not None]

    async def change(self, tenant: str, changes: Mapping[str, Any], *, dry_run: bool = False) -> TenantRecord:
        """Set what is named, leave the rest; None gives a value back to the settings."""
        document = Document(self._store, BUCKET_TENANTS, tenant_key(tenant), TenantRecord(id=tenant))
        if dry_run:
            return msgspec.structs.replace((await document.read())[0], **changes)
        changed = await document.change(lambda now: msgspec.structs.replace(now, **changes))
        log.info("tenant changed", tenant=tenant, fields=",".join(changes))
        return changed

    async def delete(self, tenant: str, *, dry_run: bool = False) -> bool:
        """Give everything back to the settings. False when there is nothing to give back."""
        while True:
            body, revision = await self._store.read(BUCKET_TENANTS, tenant_key(tenant))
            if body is None or dry_run:
                return body is not None
            with contextlib.suppress(RevisionConflict):
                await self._store.write(BUCKET_TENANTS, tenant_key(tenant), None, revision)
                log.info("tenant given back to the settings", tenant=tenant)
                return True


def follow_identities(follower: Follower, tenants: Tenants) -> None:
    """Carry every change of keys and tenants into a process's own. What is not understood leaves the last in force."""

    def apply_key(entry: str, body: bytes | None) -> None:
        key = None if body is None else _key(entry, body)
        if key is not None or body is None:
            tenants.set_key(entry.removeprefix(KEYS_API_KEY), key)

    def apply_tenant(entry: str, body: bytes | None) -> None:
        record = None if body is None else _record(entry, body)
        if record is not None or body is None:
            tenants.set_record(decode_token(entry.removeprefix(KEYS_TENANT)), record)
            log.info("tenant applied", entry=entry)

    follower.follow_all(KEYS_API_KEY, apply_key)
    follower.follow_all(KEYS_TENANT, apply_tenant)


def _key(entry: str, body: bytes | None) -> ApiKey | None:
    try:
        key = msgspec.json.decode(body or b"", type=ApiKey)
        return key if api_key_key(key.id) == entry else None
    except (msgspec.DecodeError, ValueError) as error:
        log.warning("API key not understood", entry=entry, reason=str(error))
        return None


def _record(entry: str, body: bytes | None) -> TenantRecord | None:
    try:
        record = msgspec.json.decode(body or b"", type=TenantRecord)
        return record if tenant_key(record.id) == entry else None
    except (msgspec.DecodeError, ValueError) as error:
        log.warning("tenant not understood", entry=entry, reason=str(error))
        return None
