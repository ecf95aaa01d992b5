"""GET /v1/admin/audit: the anchored heads of the audit log's chains."""

from __future__ import annotations

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency

from inferflux.registry.audit import Anchors


@get("/audit", opt={"scope": "admin"})
async def list_heads(anchors: NamedDependency[Anchors]) -> Response[bytes]:
    """For each process that wrote an audit log: its newest line's number and hash, for `inferctl audit verify`."""
    answer = {"object": "list", "data": await anchors.heads()}
    return Response(msgspec.json.encode(answer), media_type="application/json")
