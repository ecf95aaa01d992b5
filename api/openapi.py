"""The OpenAPI document, made from the same structs that read requests and write answers."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .answers import ChatCompletion, Completion, EmbeddingList, ModelAnswer, ModelList
from .batches.answers import BatchAnswer, BatchList, FileAnswer, FileDeleted, FileList
from .problems import Problem
from .queues import CancelAnswer
from .routes.api_keys import ApiKeyRequest, NewApiKeyAnswer
from .routes.batches import BatchRequest
from .routes.dead import RetryAnswer, WholeLetterAnswer
from .routes.fairness import FairnessAnswer, FairnessRequest
from .routes.rate_limit import RateLimitAnswer, RateLimitRequest
from .routes.tenants import TenantAnswer, TenantRequest
from .routes.usage import UsageAnswer
from .schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from .status import StatusAnswer

_PLAIN: dict[str, Any] = {"type": "object"}
_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": ["batch"]}},
    "required": ["file", "purpose"],
}
_DRY_RUN = "Check the request and answer what it would do, and change nothing."


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


OPERATIONS = (
    Operation(
        method="post",
        path="/v1/chat/completions",
        summary="Continue a conversation.",
        scope="generate",
        request=ChatRequest,
        answer=ChatCompletion,
        streams=True,
    ),
    Operation(
        method="post",
        path="/v1/completions",
        summary="Continue a text, or several.",
        scope="generate",
        request=CompletionRequest,
        answer=Completion,
        streams=True,
    ),
    Operation(
        method="post",
        path="/v1/embeddings",
        summary="Turn texts into vectors.",
        scope="generate",
        request=EmbeddingRequest,
        answer=EmbeddingList,
    ),
    Operation(
        method="get",
        path="/v1/streams/{stream_id}",
        summary="Go on reading an answer, after the header Last-Event-ID or the query parameter last_event_id.",
        scope="generate",
        streams=True,
    ),
    Operation(
        method="post",
        path="/v1/files",
        summary="Upload a file of requests: a form with `file` and `purpose`.",
        scope="generate",
        answer=FileAnswer,
        uploads=True,
    ),
    Operation(
        method="get",
        path="/v1/files",
        summary="List the files.",
        scope="generate",
        answer=FileList,
        query=("after", "limit", "order", "purpose"),
    ),
    Operation(method="get", path="/v1/files/{file_id}", summary="One file.", scope="generate", answer=FileAnswer),
    Operation(
        method="delete", path="/v1/files/{file_id}", summary="Delete a file.", scope="generate", answer=FileDeleted
    ),
    Operation(
        method="get",
        path="/v1/files/{file_id}/content",
        summary="A file's bytes.",
        scope="generate",
        media_type="application/octet-stream",
    ),
    Operation(
        method="post",
        path="/v1/batches",
        summary="Have every request of a file answered when there is room.",
        scope="generate",
        request=BatchRequest,
        answer=BatchAnswer,
    ),
    Operation(
        method="get",
        path="/v1/batches",
        summary="List the batches.",
        scope="generate",
        answer=BatchList,
        query=("after", "limit"),
    ),
    Operation(method="get", path="/v1/batches/{batch_id}", summary="One batch.", scope="generate", answer=BatchAnswer),
    Operation(
        method="post",
        path="/v1/batches/{batch_id}/cancel",
        summary="Stop a batch; what is answered by then stays.",
        scope="generate",
        answer=BatchAnswer,
    ),
    Operation(method="get", path="/v1/models", summary="List the models.", scope="read", answer=ModelList),
    Operation(method="get", path="/v1/models/{model_id}", summary="One model.", scope="read", answer=ModelAnswer),
    Operation(method="get", path="/v1/admin/workers", summary="Every live worker's last heartbeat.", scope="admin"),
    Operation(
        method="get",
        path="/v1/admin/queue",
        summary="Every lane that holds prompts: how many wait and run, and how old the oldest is.",
        scope="admin",
    ),
    Operation(
        method="delete",
        path="/v1/admin/requests/{request_id}",
        summary="Cancel a request, queued or running.",
        scope="admin",
        answer=CancelAnswer,
    ),
    Operation(
        method="get",
        path="/v1/admin/queue/dead",
        summary="Requests that were given up, without their prompts.",
        scope="admin",
    ),
    Operation(
        method="get",
        path="/v1/admin/queue/dead/{letter_id}",
        summary="One of them, with its prompt.",
        scope="admin",
        answer=WholeLetterAnswer,
    ),
    Operation(
        method="post",
        path="/v1/admin/queue/dead/{letter_id}/retry",
        summary="Run its prompt again as a new request, and wait for the answer.",
        scope="admin",
        answer=RetryAnswer,
    ),
    Operation(method="delete", path="/v1/admin/queue/dead/{letter_id}", summary="Forget it.", scope="admin"),
    Operation(
        method="get",
        path="/v1/admin/fairness",
        summary="Weights and class shares in force.",
        scope="admin",
        answer=FairnessAnswer,
    ),
    Operation(
        method="put",
        path="/v1/admin/fairness",
        summary="Change weights and class shares while the fleet runs.",
        scope="admin",
        request=FairnessRequest,
        answer=FairnessAnswer,
        dry_run=True,
    ),
    Operation(
        method="get",
        path="/v1/admin/rate_limit",
        summary="Limits of keys and tenants in force.",
        scope="admin",
        answer=RateLimitAnswer,
    ),
    Operation(
        method="put",
        path="/v1/admin/rate_limit",
        summary="Change limits of keys and tenants while the fleet runs.",
        scope="admin",
        request=RateLimitRequest,
        answer=RateLimitAnswer,
        dry_run=True,
    ),
    Operation(
        method="get",
        path="/v1/admin/usage",
        summary="Requests and tokens of each tenant, key and model by the day or month, and this month's budgets.",
        scope="admin",
        answer=UsageAnswer,
        query=("tenant", "key", "model", "since", "until", "by"),
    ),
    Operation(method="get", path="/v1/admin/api_keys", summary="Every API key, by all but itself.", scope="admin"),
    Operation(
        method="post",
        path="/v1/admin/api_keys",
        summary="Make an API key; the answer is the only one that shows it.",
        scope="admin",
        request=ApiKeyRequest,
        answer=NewApiKeyAnswer,
        status=201,
        dry_run=True,
    ),
    Operation(
        method="delete",
        path="/v1/admin/api_keys/{key_id}",
        summary="Revoke an API key.",
        scope="admin",
        dry_run=True,
    ),
    Operation(method="get", path="/v1/admin/tenants", summary="Every tenant that is named anywhere.", scope="admin"),
    Operation(
        method="get",
        path="/v1/admin/tenants/{tenant_id}",
        summary="One tenant as it is in force.",
        scope="admin",
        answer=TenantAnswer,
    ),
    Operation(
        method="put",
        path="/v1/admin/tenants/{tenant_id}",
        summary="Change a tenant, or make one.",
        scope="admin",
        request=TenantRequest,
        answer=TenantAnswer,
        dry_run=True,
    ),
    Operation(
        method="delete",
        path="/v1/admin/tenants/{tenant_id}",
        summary="Give a tenant back to the settings.",
        scope="admin",
        dry_run=True,
    ),
    Operation(method="get", path="/v1/admin/status", summary="This API process.", scope="admin", answer=StatusAnswer),
    Operation(method="get", path="/livez", summary="Whether the process answers."),
    Operation(method="get", path="/readyz", summary="Whether new requests are accepted, with each check."),
    Operation(method="get", path="/healthz", summary="The same as /readyz."),
    Operation(method="get", path="/metrics", summary="Prometheus metrics.", media_type="text/plain"),
    Operation(method="get", path="/openapi.json", summary="This document."),
    Operation(method="get", path="/docs", summary="This document, to read.", media_type="text/html"),
)


def document(version: str) -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    types = [struct for each in OPERATIONS for struct in (each.request, each.answer) if struct is not None]
    schemas, components = msgspec.json.schema_components([*types, Problem], ref_template="#/components/schemas/{name}")
    refs: dict[Any, dict[str, Any]] = dict(zip([*types, Problem], schemas, strict=True))
    paths: dict[str, Any] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method] = _operation(each, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "InferFlux", "version": version},
        "paths": paths,
        "components": {
            "schemas": dict(components),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(each: Operation, refs: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {each.media_type: {"schema": refs[each.answer] if each.answer else _PLAIN}}
    if each.media_type != "application/json":
        content = {each.media_type: {"schema": {"type": "string"}}}
    if each.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    problem = {"description": "An error, in OpenAI's shape", "content": {"application/json": {"schema": refs[Problem]}}}
    operation: dict[str, Any] = {
        "summary": each.summary,
        "responses": {str(each.status): {"description": "Success", "content": content}, "default": problem},
    }
    if each.scope is not None:
        operation["security"] = [{"key": []}]
        operation["description"] = f"Needs a key with the scope `{each.scope}`."
    if each.request is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": refs[each.request]}}}
    if each.uploads:
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", each.path)
    ]
    if each.dry_run:
        parameters.append({"name": "dry_run", "in": "query", "schema": {"type": "boolean"}, "description": _DRY_RUN})
    parameters += [{"name": name, "in": "query", "schema": {"type": "string"}} for name in each.query]
    if parameters:
        operation["parameters"] = parameters
    return operation
