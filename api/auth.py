"""Authentication: a bearer key or token becomes a principal, and a principal needs the route's scope."""

from __future__ import annotations

import time
from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from inferflux.broker.errors import Code, RequestError
from inferflux.config.settings import Scope
from inferflux.registry.models import ModelEntry, Models
from inferflux.registry.tenants import Principal, Tenants

from .oidc import Oidc, looks_like_token

PRINCIPAL = "principal"
"""Where the gate leaves a request's principal in its state."""


class Gate:
    """The guard of every route under /v1. A route names its scope as `opt={"scope": ...}`; one that names none is
    closed to everybody."""

    def __init__(self, tenants: Tenants, oidc: Oidc | None = None) -> None:
        self._tenants = tenants
        self._oidc = oidc

    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        """Raises RequestError: 401 without a valid key or token, 403 without the scope, 503 where a token cannot be
        checked now."""
        if connection.scope["method"] == "OPTIONS":  # type: ignore[typeddict-item]
            # Which methods a path has is in the OpenAPI document, for everybody.
            return
        principal = await self.authenticate(connection.headers.get("authorization"))
        connection.scope["state"][PRINCIPAL] = principal
        scope: Scope | None = handler.opt.get("scope")
        if scope not in principal.scopes:
            raise RequestError(
                Code.INSUFFICIENT_SCOPE, f"this key lacks the scope {scope!r}, which this endpoint needs"
            )

    async def authenticate(self, header: str | None) -> Principal:
        """The principal of an Authorization header. Raises RequestError."""
        if not self._tenants.num_keys and self._oidc is None:
            raise RequestError(
                Code.INVALID_API_KEY,
                "this server has no API keys yet: put a first one into auth.api_keys of its settings",
            )
        if header is None:
            raise RequestError(Code.INVALID_API_KEY, "no API key: send it as 'Authorization: Bearer YOUR_KEY'")
        scheme, _, key = header.partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise RequestError(Code.INVALID_API_KEY, "the Authorization header must read 'Bearer YOUR_KEY'")
        if self._oidc is not None and looks_like_token(key):
            return await self._oidc.principal(key)
        principal = self._tenants.authenticate(key, time.time())
        if principal is None:
            raise RequestError(Code.INVALID_API_KEY, "this API key is not known here, was revoked, or has expired")
        return principal

    async def close(self) -> None:
        if self._oidc is not None:
            await self._oidc.close()


def principal_of(request: Request[Any, Any, Any]) -> Principal:
    """Who the gate let in."""
    principal: Principal = request.scope["state"][PRINCIPAL]
    return principal


def usable_model(models: Models, name: str | None, principal: Principal) -> ModelEntry:
    """The model that a request names, or the default. Raises RequestError when there is none that it may use."""
    entry = models.resolve(name)
    if entry is None:
        known = ", ".join(each.id for each in models.entries if principal.may_use(each.id)) or "none"
        if name is None:
            raise RequestError(
                Code.INVALID_REQUEST, f"'model' is required: there is no default; known: {known}", param="model"
            )
        raise RequestError(
            Code.MODEL_NOT_FOUND, f"the model {name[:200]!r} does not exist; known: {known}", param="model"
        )
    if not principal.may_use(entry.id):
        raise RequestError(Code.MODEL_NOT_ALLOWED, f"this key may not use the model {entry.id!r}", param="model")
    return entry
