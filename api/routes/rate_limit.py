"""/v1/admin/rate_limit: what keys and tenants may use up, as it is and as it shall be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Request, Response, get, put
from litestar.di import NamedDependency
from litestar.params import FromQuery
from msgspec import UNSET, Meta, UnsetType

from inferflux.broker.wire.policies import Limits, NumAllowed, RateLimit, TenantLimit
from inferflux.registry.limits import LimitStore, key_limit, tenant_limit

from ..gateway import Gateway

Name = Annotated[str, Meta(min_length=1, max_length=200)]
L = TypeVar("L", bound=RateLimit)


class RateLimitChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What shall change; 0 is no limit, null gives a value back, and what is not named stays."""

    requests_per_minute: NumAllowed | UnsetType | None = UNSET
    tokens_per_minute: NumAllowed | UnsetType | None = UNSET


class TenantLimitChange(RateLimitChange, frozen=True, forbid_unknown_fields=True):
    """The same for a tenant."""

    tokens_per_month: NumAllowed | UnsetType | None = UNSET


class RateLimitRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Changes of every key's limits, of every tenant's, and of those named; null takes back what was said of one."""

    key: RateLimitChange = RateLimitChange()
    tenant: TenantLimitChange = TenantLimitChange()
    keys: dict[Name, RateLimitChange | None] = {}
    tenants: dict[Name, TenantLimitChange | None] = {}


class KeyLimitAnswer(msgspec.Struct, frozen=True):
    """A limit in force; null bounds nothing."""

    requests_per_minute: int | None
    tokens_per_minute: int | None


class TenantLimitAnswer(KeyLimitAnswer, frozen=True):
    """The same of a tenant."""

    tokens_per_month: int | None


class RateLimitAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Limits in force: `key` and `tenant` of those that nobody named. `changed` is what was said while running."""

    key: KeyLimitAnswer
    tenant: TenantLimitAnswer
    keys: dict[str, KeyLimitAnswer]
    tenants: dict[str, TenantLimitAnswer]
    changed: Limits
    dry_run: bool = False


@get("/rate_limit", opt={"scope": "admin"})
async def get_rate_limit(
    limit_store: NamedDependency[LimitStore], gateway: NamedDependency[Gateway]
) -> Response[bytes]:
    """Limits in force."""
    return _respond(await limit_store.read(), gateway, dry_run=False)


@put("/rate_limit", opt={"scope": "admin"})
async def change_rate_limit(
    request: Request[Any, Any, Any],
    limit_store: NamedDependency[LimitStore],
    gateway: NamedDependency[Gateway],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Change limits of the running fleet; replicas and workers follow within a second."""
    wanted = await gateway.parse(request, RateLimitRequest)

    def change(now: Limits) -> Limits:
        return Limits(
            key=_changed(now.key, wanted.key),
            tenant=_changed(now.tenant, wanted.tenant),
            keys=_all_changed(now.keys, wanted.keys, RateLimit()),
            tenants=_all_changed(now.tenants, wanted.tenants, TenantLimit()),
        )

    return _respond(await limit_store.change(change, dry_run=dry_run), gateway, dry_run=dry_run)


LIMIT_ROUTES = [get_rate_limit, change_rate_limit]


def _changed(now: L, change: RateLimitChange) -> L:
    said = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not UNSET}
    return msgspec.structs.replace(now, **said)


def _all_changed(now: Mapping[str, L], changes: Mapping[str, RateLimitChange | None], empty: L) -> dict[str, L]:
    said = {name: _changed(now.get(name, empty), change) for name, change in changes.items() if change is not None}
    kept = {name: limit for name, limit in now.items() if name not in changes}
    return {name: limit for name, limit in (kept | said).items() if limit != empty}


def _respond(limits: Limits, gateway: Gateway, *, dry_run: bool) -> Response[bytes]:
    auth = gateway.settings.auth
    answer = RateLimitAnswer(
        key=_key(key_limit(limits, auth, "")),
        tenant=_tenant(tenant_limit(limits, "")),
        keys={name: _key(key_limit(limits, auth, name)) for name in limits.keys},
        tenants={name: _tenant(tenant_limit(limits, name)) for name in limits.tenants},
        changed=limits,
        dry_run=dry_run,
    )
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _key(limit: RateLimit) -> KeyLimitAnswer:
    return KeyLimitAnswer(limit.requests_per_minute, limit.tokens_per_minute)


def _tenant(limit: TenantLimit) -> TenantLimitAnswer:
    return TenantLimitAnswer(limit.requests_per_minute, limit.tokens_per_minute, limit.tokens_per_month)
