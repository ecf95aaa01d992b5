"""Limits that change while the fleet runs: one document in KV over what the settings say, followed by every process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from inferflux.broker.subjects import BUCKET_POLICY, KEY_LIMITS
from inferflux.broker.wire.policies import Limits, RateLimit, TenantLimit
from inferflux.config.logs import get_logger
from inferflux.config.settings import AuthSettings

from .quota import Scope
from .store import Document, Follower, PolicyStore

L = TypeVar("L", bound=RateLimit)

log = get_logger("registry.limits")


def limits_document(store: PolicyStore) -> Document[Limits]:
    return Document(store, BUCKET_POLICY, KEY_LIMITS, Limits())


class LimitStore:
    """Reads and changes the document. Every call may raise BrokerError."""

    def __init__(self, store: PolicyStore) -> None:
        self._document = limits_document(store)

    async def read(self) -> Limits:
        return (await self._document.read())[0]

    async def change(self, change: Callable[[Limits], Limits], *, dry_run: bool = False) -> Limits:
        """The limits as changed; stored unless this is a dry run."""
        if dry_run:
            return change(await self.read())
        changed = await self._document.change(change)
        log.info("limits changed", num_keys=len(changed.keys), num_tenants=len(changed.tenants))
        return changed


class LimitBook:
    """The limits in force: a key's or tenant's own, else those of every key and tenant, else the settings'. 0 bounds
    nothing."""

    def __init__(self, settings: AuthSettings) -> None:
        self._settings = settings
        self._limits = Limits()

    def follow(self, follower: Follower, store: PolicyStore) -> None:
        follower.follow(limits_document(store), self.apply)

    def apply(self, limits: Limits) -> None:
        self._limits = limits
        log.info("limits applied", num_keys=len(limits.keys), num_tenants=len(limits.tenants))

    def of_key(self, key_id: str) -> RateLimit:
        """What is None in it is not bounded."""
        return key_limit(self._limits, self._settings, key_id)

    def of_tenant(self, tenant_id: str) -> TenantLimit:
        """What is None in it is not bounded."""
        return tenant_limit(self._limits, tenant_id)

    def scopes(self, tenant_id: str, key_id: str | None) -> list[Scope]:
        """Those of a request's key and tenant that have a limit by the minute."""
        scopes = [Scope("tenant", tenant_id, self.of_tenant(tenant_id))]
        if key_id:
            scopes.append(Scope("key", key_id, self.of_key(key_id)))
        return [
            scope
            for scope in scopes
            if scope.limit.requests_per_minute is not None or scope.limit.tokens_per_minute is not None
        ]

    def budget(self, tenant_id: str) -> int | None:
        """Tokens a month."""
        return self.of_tenant(tenant_id).tokens_per_month


def key_limit(limits: Limits, settings: AuthSettings, key_id: str) -> RateLimit:
    start = RateLimit(requests_per_minute=settings.rate_limit_per_minute)
    return _resolved(limits.keys.get(key_id), limits.key, start)


def tenant_limit(limits: Limits, tenant_id: str) -> TenantLimit:
    return _resolved(limits.tenants.get(tenant_id), limits.tenant)


def _resolved(*layers: L | None) -> L:
    """The first layer that says something about each bound, 0 taken for no bound."""
    given = [layer for layer in layers if layer is not None]
    found: dict[str, int | None] = {}
    for name in given[0].__struct_fields__:
        said = (getattr(layer, name) for layer in given)
        found[name] = next((bound for bound in said if bound is not None), None) or None
    return type(given[0])(**found)
