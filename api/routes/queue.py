"""GET /v1/admin/queue and DELETE /v1/admin/requests/{id}: what waits and runs, and an end to one of it."""

from __future__ import annotations

import msgspec
from litestar import Response, delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from ..queues import Queues


@get("/queue", opt={"scope": "admin"})
async def list_queues(queues: NamedDependency[Queues]) -> Response[bytes]:
    """Every lane that holds prompts."""
    return _respond({"object": "list", "data": await queues.lanes()})


@delete("/requests/{request_id:str}", status_code=200, opt={"scope": "admin"})
async def cancel_request(
    request_id: FromPath[str], queues: NamedDependency[Queues], dry_run: FromQuery[bool] = False
) -> Response[bytes]:
    """Cancel a request, queued or running."""
    return _respond(await queues.cancel(request_id, dry_run=dry_run))


def _respond(answer: object) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type="application/json")
