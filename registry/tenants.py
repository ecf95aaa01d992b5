"""Tenants and their API keys: who may call, as whom, and with what share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from inferflux.broker.broker import LaneLimits
from inferflux.broker.errors import ConfigError
from inferflux.broker.subjects import ServiceClass, encode_token
from inferflux.broker.wire.policies import ApiKey, TenantRecord
from inferflux.config.settings import KeySettings, QueueSettings, Scope, Settings, TenantSettings


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's weight in the fair share, the classes it may use, and its bounds (None: only the stream's own, or
    those of all files)."""

    id: str
    weight: float = 1.0
    classes: tuple[ServiceClass, ...] = (ServiceClass.DEFAULT, ServiceClass.BATCH)
    max_queued: int | None = None
    max_running: int | None = None
    cache_group: str | None = None
    publish: bool = False
    file_quota_bytes: int | None = None
    file_retention_s: float | None = None

    @property
    def salt(self) -> str:
        """What separates prefix caches: tenants share pages only inside one cache group."""
        return f"group:{self.cache_group}" if self.cache_group else f"tenant:{self.id}"

    def lane_limits(self, queue: QueueSettings) -> LaneLimits:
        """How this tenant's lane consumers are made."""
        bound = queue.max_running_per_lane
        max_running = bound if self.max_running is None else min(self.max_running, bound)
        return LaneLimits(max_running=max_running, lease_s=queue.lease_s, idle_s=queue.lane_idle_s)


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who a request came from. `key_id` names the key in logs; an empty `models` allows every model."""

    tenant: Tenant
    scopes: frozenset[Scope]
    models: frozenset[str]
    key_id: str

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models


class Tenants:
    """Every tenant and key: those of the settings, and over them what operators said since. Keys are kept as SHA-256
    digests only."""

    def __init__(self, tenants: Iterable[Tenant], principals: Mapping[bytes, Principal]) -> None:
        self._configured = {tenant.id: tenant for tenant in tenants}
        self._principals = principals
        self._records: dict[str, TenantRecord] = {}
        self._weights: Mapping[str, float] = {}
        self._tenants = dict(self._configured)
        self._keys: dict[str, ApiKey] = {}
        self._keys_by_digest: dict[bytes, ApiKey] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> Tenants:
        """Raises ConfigError naming the entry and the field."""
        tenants: dict[str, Tenant] = {}
        for number, entry in enumerate(settings.tenants):
            tenant = _tenant(entry, f"tenants[{number}]")
            if tenant.id in tenants:
                raise ConfigError(f"tenants[{number}].id: {tenant.id!r} is there twice; give each tenant one entry")
            tenants[tenant.id] = tenant
        principals: dict[bytes, Principal] = {}
        for number, key in enumerate(settings.auth.api_keys):
            digest = key_digest(key.key)
            if not key.key.strip():
                raise ConfigError(f"auth.api_keys[{number}].key: is empty; give it at least a few random characters")
            if digest in principals:
                raise ConfigError(f"auth.api_keys[{number}].key: the same key is there twice; remove one entry")
            principal = _principal(key, digest, tenants, f"auth.api_keys[{number}]")
            tenants.setdefault(principal.tenant.id, principal.tenant)
            principals[digest] = principal
        return cls(tenants.values(), principals)

    @property
    def num_keys(self) -> int:
        return len(self._principals) + len(self._keys)

    @property
    def configured_keys(self) -> tuple[Principal, ...]:
        """Those of the settings."""
        return tuple(self._principals.values())

    def authenticate(self, key: str, now_s: float) -> Principal | None:
        """The principal of a key that is known and has not expired at Unix time `now_s`.

        Looked up by digest, so timing says nothing about how much of a guess was right.
        """
        digest = key_digest(key)
        configured = self._principals.get(digest)
        if configured is not None:
            return msgspec.structs.replace(configured, tenant=self.tenant(configured.tenant.id))
        found = self._keys_by_digest.get(digest)
        if found is None or (found.expires is not None and now_s >= found.expires):
            return None
        return Principal(
            tenant=self.tenant(found.tenant),
            scopes=frozenset(found.scopes),
            models=frozenset(found.models),
            key_id=found.id,
        )

    def tenant(self, tenant_id: str) -> Tenant:
        """A tenant that nobody configured has weight 1 and the default rights."""
        return self._tenants.get(tenant_id) or Tenant(id=tenant_id)

    def configured(self, tenant_id: str) -> Tenant | None:
        """The tenant as the settings have it."""
        return self._configured.get(tenant_id)

    def record(self, tenant_id: str) -> TenantRecord | None:
        """What operators said of the tenant since."""
        return self._records.get(tenant_id)

    def all(self) -> tuple[Tenant, ...]:
        return tuple(self._tenants.values())

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """From now on these tenants have these weights, and all others those of their records and the settings."""
        self._weights = weights
        self._tenants = {name: self.with_record(name, self._records.get(name)) for name in self._names()}

    def set_record(self, tenant_id: str, record: TenantRecord | None) -> None:
        """From now on this is what operators say of the tenant."""
        if record is None:
            self._records.pop(tenant_id, None)
        else:
            self._records[tenant_id] = record
        if tenant_id in self._names():
            self._tenants[tenant_id] = self.with_record(tenant_id, record)
        else:
            self._tenants.pop(tenant_id, None)

    def set_key(self, key_id: str, key: ApiKey | None) -> None:
        """From now on this key is known; None: it is not known any more."""
        before = self._keys.pop(key_id, None)
        if before is not None:
            self._keys_by_digest.pop(bytes.fromhex(before.digest), None)
        if key is not None:
            self._keys[key_id] = key
            self._keys_by_digest[bytes.fromhex(key.digest)] = key

    def with_record(self, tenant_id: str, record: TenantRecord | None) -> Tenant:
        """The tenant as it would be with such a record: a weight of the fairness document wins over it, and it over
        the settings."""
        base = self._configured.get(tenant_id) or Tenant(id=tenant_id)
        said: dict[str, Any] = {} if record is None else msgspec.structs.asdict(record)
        given = {name: value for name, value in said.items() if value is not None}
        if "classes" in given:
            given["classes"] = tuple(ServiceClass(name) for name in given["classes"])
        if tenant_id in self._weights:
            given["weight"] = self._weights[tenant_id]
        return msgspec.structs.replace(base, **given)

    def _names(self) -> set[str]:
        return self._configured.keys() | self._records.keys() | self._weights.keys()


def key_digest(key: str) -> bytes:
    """A plain hash suffices: keys are long random texts, which no dictionary holds and no machine can try out."""
    return hashlib.sha256(key.encode()).digest()


def _tenant(entry: TenantSettings, where: str) -> Tenant:
    try:
        encode_token(entry.id)
    except ValueError as error:
        raise ConfigError(f"{where}.id: {error}") from None
    if not entry.classes:
        raise ConfigError(f"{where}.classes: is empty; a tenant needs at least one service class")
    return Tenant(
        id=entry.id,
        weight=entry.weight,
        classes=tuple(ServiceClass(name) for name in entry.classes),
        max_queued=entry.max_queued,
        max_running=entry.max_running,
        cache_group=entry.cache_group,
        publish=entry.publish,
        file_quota_bytes=entry.file_quota_bytes,
        file_retention_s=entry.file_retention_s,
    )


def _principal(key: KeySettings, digest: bytes, tenants: dict[str, Tenant], where: str) -> Principal:
    key_id = digest.hex()[:12]
    tenant_id = key.tenant if key.tenant is not None else f"key-{key_id}"
    tenant = tenants.get(tenant_id) or _tenant(TenantSettings(id=tenant_id), where)
    return Principal(tenant=tenant, scopes=frozenset(key.scopes), models=frozenset(key.models), key_id=key_id)
