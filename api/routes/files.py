"""/v1/files: what batches read and write."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.exceptions import InternalServerException
from litestar.params import FromPath
from litestar.response import Stream

from inferflux.broker.errors import Code, RequestError
from inferflux.config.metrics import ApiMetrics

from ..auth import principal_of
from ..batches.answers import FileAnswer, FileDeleted, FileList
from ..batches.batches import BATCH_FILE, Batches
from ..batches.identity import new_file
from ..exchange import GONE
from ..files import Files
from ..paging import behind, order, page_query
from ..problems import respond as respond_problem
from ..upload import Upload

MAX_PAGE = 10_000
MIN_RETENTION_S, MAX_RETENTION_S = 3600, 30 * 24 * 3600


@post("/files", opt={"scope": "generate"}, status_code=200)
async def create_file(
    request: Request[Any, Any, Any], files: NamedDependency[Files], api_metrics: NamedDependency[ApiMetrics]
) -> Response[bytes]:
    """Upload a file: a form with `file` and `purpose`, and `expires_after` where it is to go earlier."""
    draft = await files.begin(principal_of(request).tenant.id, new_file())
    try:
        upload = Upload()
        await upload.read(request.headers.get("content-type", ""), request.stream(), draft.add)
        if upload.filename is None:
            raise RequestError(Code.INVALID_REQUEST, "'file' is required", param="file")
        purpose = upload.fields.get("purpose")
        if purpose != BATCH_FILE:
            raise RequestError(Code.INVALID_REQUEST, f"'purpose': must be {BATCH_FILE!r}", param="purpose")
        retention_s = expires_after(
            upload.fields.get("expires_after[anchor]"), upload.fields.get("expires_after[seconds]")
        )
        file = await draft.keep(filename=upload.filename, purpose=purpose, retention_s=retention_s)
    except InternalServerException:  # Litestar has no other word for a client that hung up
        await draft.discard()
        return respond_problem(GONE)
    except BaseException:
        await asyncio.shield(draft.discard())
        raise
    api_metrics.file_bytes.labels("in").inc(draft.size)
    return respond(FileAnswer.of(file))


@get("/files", opt={"scope": "generate"})
async def list_files(request: Request[Any, Any, Any], files: NamedDependency[Files]) -> Response[bytes]:
    """The tenant's files, newest first."""
    query = page_query(request.query_params, MAX_PAGE)
    purpose = request.query_params.get("purpose")
    found = await files.all(principal_of(request).tenant.id)
    if order(request.query_params) == "desc":
        found.reverse()
    found = [file for file in found if purpose in (None, file.purpose)]
    found = found[behind([file.id for file in found], query.after, "file") :]
    answers = [FileAnswer.of(file) for file in found[: query.limit]]
    return respond(FileList.of(answers, has_more=len(found) > query.limit))


@get("/files/{file_id:str}", opt={"scope": "generate"})
async def get_file(
    request: Request[Any, Any, Any], file_id: FromPath[str], files: NamedDependency[Files]
) -> Response[bytes]:
    """One file."""
    return respond(FileAnswer.of(await files.get(principal_of(request).tenant.id, file_id)))


@get("/files/{file_id:str}/content", opt={"scope": "generate"})
async def get_file_content(
    request: Request[Any, Any, Any],
    file_id: FromPath[str],
    files: NamedDependency[Files],
    api_metrics: NamedDependency[ApiMetrics],
) -> Stream:
    """The file's bytes."""
    file = await files.get(principal_of(request).tenant.id, file_id)
    api_metrics.file_bytes.labels("out").inc(file.info.size)
    return Stream(
        files.content(file),
        media_type="application/octet-stream",
        headers={"content-length": str(file.info.size), "content-disposition": "attachment"},
    )


@delete("/files/{file_id:str}", opt={"scope": "generate"}, status_code=200)
async def delete_file(
    request: Request[Any, Any, Any],
    file_id: FromPath[str],
    files: NamedDependency[Files],
    batches: NamedDependency[Batches],
) -> Response[bytes]:
    """Delete a file for good. One that a batch still reads stays."""
    tenant = principal_of(request).tenant.id
    file = await files.get(tenant, file_id)
    user = batches.uses(tenant, file_id)
    if user is not None:
        raise RequestError(
            Code.CONFLICT, f"the batch {user.id} still reads this file; cancel it first", param="file_id"
        )
    await files.delete(file)
    return respond(FileDeleted(id=file.id))


def expires_after(anchor: object, seconds: object) -> float | None:
    """A file's time as OpenAI's clients say it. Raises RequestError."""
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise RequestError(
            Code.INVALID_REQUEST, "'expires_after.anchor': must be 'created_at'", param="expires_after.anchor"
        )
    try:
        value = int(str(seconds))
    except ValueError:
        value = 0
    if not MIN_RETENTION_S <= value <= MAX_RETENTION_S:
        raise RequestError(
            Code.INVALID_REQUEST,
            f"'expires_after.seconds': must be {MIN_RETENTION_S} to {MAX_RETENTION_S}",
            param="expires_after.seconds",
        )
    return float(value)


def respond(answer: msgspec.Struct, headers: Mapping[str, str] | None = None) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type="application/json", headers=dict(headers or {}))


FILE_ROUTES = [list_files, get_file, get_file_content, delete_file]
