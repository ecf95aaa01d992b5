"""The OpenAPI document, made from the same structs that read requests and write answers."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .admin_operations import ADMIN_OPERATIONS
from .answers import ChatCompletion, Completion, EmbeddingList, ModelAnswer, ModelList
from .batches.answers import BatchAnswer, BatchList, FileAnswer, FileDeleted, FileList
from .operation import Operation
from .problems import Problem
from .queues import CancelAnswer
from .routes.batches import BatchRequest
from .schemas import ChatRequest, CompletionRequest, EmbeddingRequest

_PLAIN: dict[str, Any] = {"type": "object"}
_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": ["batch"]}},
    "required": ["file", "purpose"],
}
_DRY_RUN = "Check the request and answer what it would do, and change nothing."


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
        method="delete",
        path="/v1/streams/{stream_id}",
        summary="Cancel a request of your own, queued or running.",
        scope="generate",
        answer=CancelAnswer,
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
    *ADMIN_OPERATIONS,
    Operation(method="get", path="/livez", summary="Whether the process answers."),
    Operation(method="get", path="/readyz", summary="Whether new requests are accepted, with each check."),
    Operation(method="get", path="/healthz", summary="The same as /readyz."),
    Operation(method="get", path="/metrics", summary="Prometheus metrics.", media_type="text/plain"),
    Operation(method="get", path="/openapi.json", summary="This document."),
    Operation(method="get", path="/ui", summary="The operator's page.", media_type="text/html"),
    Operation(method="get", path="/ui/{name}", summary="What that page is made of.", media_type="text/plain"),
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
