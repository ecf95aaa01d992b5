"""/v1/batches: files of requests that run when there is room."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from ..auth import principal_of
from ..batches.answers import BatchAnswer, BatchList
from ..batches.batches import Batches, checked_metadata
from ..gateway import Gateway
from ..paging import page_query
from .files import expires_after, respond

MAX_PAGE, PAGE = 100, 20


class ExpiresAfter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long result files are kept."""

    anchor: Literal["created_at"]
    seconds: int


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


@post("/batches", opt={"scope": "generate"}, status_code=200)
async def create_batch(
    request: Request[Any, Any, Any], gateway: NamedDependency[Gateway], batches: NamedDependency[Batches]
) -> Response[bytes]:
    """Have every line of a file answered."""
    body = await gateway.parse(request, BatchRequest)
    wanted = body.output_expires_after
    batch = await batches.create(
        principal_of(request),
        body.input_file_id,
        body.endpoint,
        body.completion_window,
        metadata=checked_metadata(body.metadata),
        output_retention_s=None if wanted is None else expires_after(wanted.anchor, wanted.seconds),
    )
    return respond(BatchAnswer.of(batch))


@get("/batches", opt={"scope": "generate"})
async def list_batches(request: Request[Any, Any, Any], batches: NamedDependency[Batches]) -> Response[bytes]:
    """The tenant's batches, newest first."""
    query = page_query(request.query_params, MAX_PAGE, PAGE)
    page, has_more = await batches.page(principal_of(request).tenant.id, query.after, query.limit)
    return respond(BatchList.of([BatchAnswer.of(batch) for batch in page], has_more=has_more))


@get("/batches/{batch_id:str}", opt={"scope": "generate"})
async def get_batch(
    request: Request[Any, Any, Any], batch_id: FromPath[str], batches: NamedDependency[Batches]
) -> Response[bytes]:
    """One batch."""
    return respond(BatchAnswer.of(await batches.get(principal_of(request).tenant.id, batch_id)))


@post("/batches/{batch_id:str}/cancel", opt={"scope": "generate"}, status_code=200)
async def cancel_batch(
    request: Request[Any, Any, Any], batch_id: FromPath[str], batches: NamedDependency[Batches]
) -> Response[bytes]:
    """Stop a batch; what is answered by then stays."""
    return respond(BatchAnswer.of(await batches.cancel(principal_of(request).tenant.id, batch_id)))


BATCH_ROUTES = [create_batch, list_batches, get_batch, cancel_batch]
