"""An operation: what the OpenAPI document says of one endpoint."""

from __future__ import annotations

import msgspec


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint. `scope` is what its key needs; None is open to everybody."""

    method: str
    path: str
    summary: str
    scope: str | None = None
    request: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    streams: bool = False
    media_type: str = "application/json"
    uploads: bool = False
    status: int = 200
    dry_run: bool = False
    query: tuple[str, ...] = ()
