"""Batch jobs and the files that they read and write."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from .base import Wire
from .requests import Usage


class LineProblem(Wire, frozen=True, kw_only=True):
    """What is wrong with a batch's file; `line` counts from 1 and is None where it is about the whole file."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class LineCounts(Wire, frozen=True, kw_only=True):
    """Lines of a batch: all, those answered, and those that ended with an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0


BatchStatus: TypeAlias = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
]

BatchEnding: TypeAlias = Literal["completed", "expired", "cancelled"]


class Batch(Wire, frozen=True, kw_only=True):
    """A batch, as the bucket `batches` keeps it; times are Unix seconds, files are ids of objects of the tenant.

    `allowed_models` are those of the key that made it (none: all). `owner` is the API replica that works on it; it
    writes the entry again every second or so, and others take over what has not been written for a lease. `num_parts`
    is how much of the journal counts, once that is settled, and `ending` what the batch will end as. `key` names the
    API key that it came with.
    """

    id: str
    tenant: str
    endpoint: str
    input_file: str
    window: str
    created: float
    expires: float
    status: BatchStatus = "validating"
    metadata: dict[str, str] | None = None
    allowed_models: tuple[str, ...] = ()
    key: str | None = None
    output_retention_s: float | None = None
    model: str | None = None
    owner: str | None = None
    counts: LineCounts = LineCounts()
    usage: Usage = Usage()
    problems: tuple[LineProblem, ...] = ()
    num_problems: int = 0
    ending: BatchEnding | None = None
    num_parts: int | None = None
    output_file: str | None = None
    output_chunks: int = 0
    error_file: str | None = None
    error_chunks: int = 0
    started: float | None = None
    cancelling: float | None = None
    finalizing: float | None = None
    ended: float | None = None


class BatchSubmission(Wire, frozen=True, kw_only=True):
    """What a direct publisher puts into the bucket `batches` to have its file run: the object that its `chunks` chunks
    are of, their `digest` (SHA-256, hexadecimal), and what `POST /v1/batches` takes."""

    input_file: Annotated[str, Meta(min_length=1, max_length=128)]
    chunks: Annotated[int, Meta(ge=1)]
    digest: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None


class BatchEntry(Wire, frozen=True, kw_only=True):
    """One answered line in a batch's journal: its number, and the line that it becomes in the output or error file."""

    line: int
    failed: bool
    record: msgspec.Raw
    usage: Usage = Usage()


class ObjectInfo(Wire, frozen=True, kw_only=True):
    """An object in the object store, as NATS clients describe one: `digest` is `SHA-256=` and base64, `nuid` says where
    its `chunks` are, `mtime` is RFC 3339."""

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str
    mtime: str
    metadata: dict[str, str] = {}
