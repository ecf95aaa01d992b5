"""Tenants and their API keys: who may call, as whom, and with what share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from inferflux.broker.broker import LaneLimits
from inferflux.broker.errors import ConfigError
from inferflux.broker.subjects import ServiceClass, encode_token
from inferflux.config.settings import KeySettings, QueueSettings, Scope, Settings, TenantSettings


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's weight in the fair share, the classes it may use, and its bounds (None: only the stream's own)."""

    id: str
    weight: float = 1.0
    classes: tuple[ServiceClass, ...] = (ServiceClass.DEFAULT, ServiceClass.BATCH)
    max_queued: int | None = None
    max_running: int | None = None
    cache_group: str | None = None
    publish: bool = False

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
    """Every tenant and key. Keys are kept as SHA-256 digests only."""

    def __init__(self, tenants: Iterable[Tenant], principals: dict[bytes, Principal]) -> None:
        self._configured = {tenant.id: tenant for tenant in tenants}
        self._tenants = dict(self._configured)
        self._principals = principals

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
            digest = _digest(key.key)
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
        return len(self._principals)

    def authenticate(self, key: str) -> Principal | None:
        """The key's principal. Looked up by digest, so timing says nothing about how much of a guess was right."""
        return self._principals.get(_digest(key))

    def tenant(self, tenant_id: str) -> Tenant:
        """A tenant that nobody configured has weight 1 and the default rights."""
        return self._tenants.get(tenant_id) or Tenant(id=tenant_id)

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """From now on these tenants have these weights, and all others those of the settings."""
        self._tenants = dict(self._configured)
        for tenant_id, weight in weights.items():
            self._tenants[tenant_id] = msgspec.structs.replace(self.tenant(tenant_id), weight=weight)

    def all(self) -> tuple[Tenant, ...]:
        return tuple(self._tenants.values())


def _digest(key: str) -> bytes:
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
    )


def _principal(key: KeySettings, digest: bytes, tenants: dict[str, Tenant], where: str) -> Principal:
    key_id = digest.hex()[:12]
    tenant_id = key.tenant if key.tenant is not None else f"key-{key_id}"
    tenant = tenants.get(tenant_id) or _tenant(TenantSettings(id=tenant_id), where)
    return Principal(tenant=tenant, scopes=frozenset(key.scopes), models=frozenset(key.models), key_id=key_id)
