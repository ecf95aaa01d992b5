"""The auditor: what of a replica's HTTP traffic goes into the audit log, which is every change and every denial."""

from __future__ import annotations

from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Scope

from inferflux.broker.errors import DENIALS, Code, RequestError
from inferflux.broker.wire.requests import Failure
from inferflux.config.audit import Actor, Audit
from inferflux.registry.guardrails.guard import Blocked, told
from inferflux.registry.tenants import Principal

from .auth import PRINCIPAL
from .problems import FailureError, to_failure

_FAILURE = "audit.failure"
_DETAIL = "audit.detail"
_ADMIN = "/v1/admin/"
_READS = ("GET", "HEAD", "OPTIONS")
_MAX_PATH = 300


class Auditor:
    """A route has nothing to do for its changes to be recorded; `describe` adds what the path does not say."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    async def guard(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """Raises RequestError for what changes something while that could not be recorded, where that is required."""
        if self._audit.refuses and _method(connection.scope) not in _READS:
            raise RequestError(
                Code.AUDIT_UNAVAILABLE,
                "the audit log cannot be written, and this server serves nothing unrecorded",
                retry_after_s=5.0,
            )

    async def failed(self, error: Exception, scope: Scope) -> None:
        """Before an error becomes an answer."""
        failure = error.failure if isinstance(error, FailureError) else to_failure(error)
        scope["state"][_FAILURE] = failure
        if isinstance(error, Blocked):
            scope["state"].setdefault(_DETAIL, {}).update(told(error, self._audit))

    def answered(self, status: int, scope: Scope) -> None:
        """When an answer begins."""
        if not self._audit.active:
            return
        failure: Failure | None = scope["state"].get(_FAILURE)
        method = _method(scope)
        changes = scope["path"].startswith(_ADMIN) and method not in _READS
        denied = failure is not None and failure.code in DENIALS
        if not changes and not denied:
            return
        detail: dict[str, Any] = {"method": method, "path": scope["path"][:_MAX_PATH], "status": status}
        if changes and scope["query_string"]:
            detail["query"] = scope["query_string"].decode("latin-1")[:_MAX_PATH]
        if failure is not None:
            detail |= {"code": failure.code, "reason": failure.message}
        self._audit.record(
            "admin.change" if changes else "request.refuse",
            actor(scope),
            "denied" if denied else "allowed" if status < 400 else "failed",
            **detail | scope["state"].get(_DETAIL, {}),
        )


def describe(request: Request[Any, Any, Any], **detail: object) -> None:
    """Add to this request's line in the audit log: what was changed, never a secret."""
    request.scope["state"].setdefault(_DETAIL, {}).update(detail)


def actor(scope: Scope) -> Actor:
    """Who sent a request, as far as is known."""
    client = scope["client"]
    source = client[0] if client else None
    principal: Principal | None = scope["state"].get(PRINCIPAL)
    if principal is None:
        return Actor(source=source)
    return Actor(id=principal.key_id, tenant=principal.tenant.id, source=source)


def _method(scope: Scope) -> str:
    return str(scope["method"])  # type: ignore[typeddict-item]
