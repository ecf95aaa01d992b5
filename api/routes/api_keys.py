"""/v1/admin/api_keys: make keys, see which there are, and revoke them."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from msgspec import Meta

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.wire.policies import ApiKey
from inferflux.config.settings import Scope
from inferflux.registry.identities import ApiKeys
from inferflux.registry.tenants import Tenants

from ..gateway import Gateway
from .tenants import TenantName, checked_name

# What is shown once must not be kept by a proxy or a browser either.
_SECRET = {"cache-control": "no-store"}
_FOREVER_S = 100 * 366 * 24 * 3600


class ApiKeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key to be made; without a tenant it is one of its own, without models it may use all of them."""

    tenant: TenantName | None = None
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] = ("generate", "read")
    models: tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...] = ()
    name: Annotated[str, Meta(max_length=200)] = ""
    expires_in_s: Annotated[float, Meta(gt=0, le=_FOREVER_S)] | None = None


class ApiKeyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A key, by all but itself. `created` and `expires` are Unix time; keys of the settings have neither."""

    id: str
    tenant: str
    scopes: tuple[Scope, ...]
    models: tuple[str, ...]
    origin: Literal["created", "settings"]
    name: str = ""
    created: float | None = None
    expires: float | None = None
    expired: bool = False


class NewApiKeyAnswer(ApiKeyAnswer, frozen=True, kw_only=True):
    """A key that was just made. `key` is shown here and never again; null in a dry run."""

    key: str | None
    dry_run: bool = False


@get("/api_keys", opt={"scope": "admin"})
async def list_api_keys(api_keys: NamedDependency[ApiKeys], tenants: NamedDependency[Tenants]) -> Response[bytes]:
    """Every key: those of the settings first."""
    configured = [
        ApiKeyAnswer(
            id=each.key_id,
            tenant=each.tenant.id,
            scopes=tuple(sorted(each.scopes)),
            models=tuple(sorted(each.models)),
            origin="settings",
        )
        for each in tenants.configured_keys
    ]
    now_s = time.time()
    created = [ApiKeyAnswer(**_about(key, now_s)) for key in await api_keys.all()]
    return _respond({"object": "list", "data": [*configured, *created]})


@post("/api_keys", status_code=201, opt={"scope": "admin"})
async def create_api_key(
    request: Request[Any, Any, Any],
    api_keys: NamedDependency[ApiKeys],
    gateway: NamedDependency[Gateway],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Make a key, which every replica knows within a second. The answer is the only one that ever shows it."""
    wanted = await gateway.parse(request, ApiKeyRequest)
    if wanted.tenant is not None:
        checked_name(wanted.tenant)
    now_s = time.time()
    expires = None if wanted.expires_in_s is None else now_s + wanted.expires_in_s
    made, key = await api_keys.create(
        tenant=wanted.tenant,
        scopes=wanted.scopes,
        models=wanted.models,
        name=wanted.name,
        now_s=now_s,
        expires=expires,
        dry_run=dry_run,
    )
    answer = NewApiKeyAnswer(**_about(made, now_s), key=None if dry_run else key, dry_run=dry_run)
    return _respond(answer, 200 if dry_run else 201, _SECRET)


@delete("/api_keys/{key_id:str}", status_code=200, opt={"scope": "admin"})
async def revoke_api_key(
    key_id: FromPath[str],
    api_keys: NamedDependency[ApiKeys],
    tenants: NamedDependency[Tenants],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Revoke a key; within a second no replica takes it any more. Streams that it opened go on."""
    if any(each.key_id == key_id for each in tenants.configured_keys):
        raise RequestError(
            Code.INVALID_REQUEST, f"the key {key_id} is one of the settings: remove it under auth.api_keys and restart"
        )
    try:
        found = await (api_keys.get(key_id) if dry_run else api_keys.revoke(key_id))
    except ValueError:
        found = None
    if not found:
        raise RequestError(Code.NOT_FOUND, f"there is no API key with the id {key_id[:100]!r}")
    return _respond({"id": key_id, "revoked": not dry_run, "dry_run": dry_run})


def _about(key: ApiKey, now_s: float) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "scopes": key.scopes,
        "models": key.models,
        "origin": "created",
        "name": key.name,
        "created": key.created,
        "expires": key.expires,
        "expired": key.expires is not None and now_s >= key.expires,
    }


def _respond(answer: object, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    body = msgspec.json.encode(answer)
    return Response(body, status_code=status, headers=headers, media_type="application/json")
