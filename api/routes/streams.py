"""/v1/streams/{id}: go on reading an answer, or have no more of it."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from ..auth import principal_of
from ..mark import Mark
from ..resumption import Resumption


@get("/streams/{stream_id:str}", opt={"scope": "generate"})
async def resume_stream(
    request: Request[Any, Any, Any], stream_id: FromPath[str], resumption: NamedDependency[Resumption]
) -> Response[bytes]:
    """The events after `Last-Event-ID`, or after the query parameter `last_event_id`, and then what comes."""
    text = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    after = Mark.parse(text) if text else None
    return await resumption.stream(principal_of(request), stream_id, after, request.receive)


@delete("/streams/{stream_id:str}", status_code=200, opt={"scope": "generate"})
async def cancel_stream(
    request: Request[Any, Any, Any], stream_id: FromPath[str], resumption: NamedDependency[Resumption]
) -> Response[bytes]:
    """Cancel a request of one's own, queued or running."""
    answer = await resumption.cancel(principal_of(request), stream_id)
    return Response(msgspec.json.encode(answer), media_type="application/json")
