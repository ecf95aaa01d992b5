"""What clients get of files and batches: OpenAI's objects."""

from __future__ import annotations

from typing import Generic, Literal, Protocol, Self, TypeVar

import msgspec

from inferflux.broker.wire.batches import Batch, LineProblem

from ..files import StoredFile


class Named(Protocol):
    """What has an id."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Named)


class FileAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None

    @classmethod
    def of(cls, file: StoredFile) -> FileAnswer:
        return cls(
            id=file.id,
            bytes=file.info.size,
            created_at=file.created,
            expires_at=file.expires,
            filename=file.filename,
            purpose=file.purpose,
        )


class ListAnswer(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A part of a list."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: list[T], *, has_more: bool) -> Self:
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, first_id=first, last_id=last, has_more=has_more)


class FileList(ListAnswer[FileAnswer], frozen=True, kw_only=True):
    """Answer of GET /v1/files."""


class FileDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of DELETE /v1/files/{file_id}."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class ProblemAnswer(msgspec.Struct, frozen=True):
    """One thing that is wrong with a batch's file; lines count from 1."""

    code: str
    message: str
    param: str | None
    line: int | None

    @classmethod
    def of(cls, problem: LineProblem) -> ProblemAnswer:
        return cls(problem.code, problem.message, problem.param, problem.line)


class ProblemList(msgspec.Struct, frozen=True, kw_only=True):
    """The first hundred problems; `total` counts all of them."""

    object: Literal["list"] = "list"
    data: list[ProblemAnswer]
    total: int


class CountsAnswer(msgspec.Struct, frozen=True):
    """Lines of a batch."""

    total: int
    completed: int
    failed: int


class InputDetails(msgspec.Struct, frozen=True):
    """Prompt tokens that the prefix cache held."""

    cached_tokens: int


class OutputDetails(msgspec.Struct, frozen=True):
    """No model here reasons apart from its answer."""

    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True):
    """Tokens of all lines that were answered so far."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class BatchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: ProblemList | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: CountsAnswer
    usage: BatchUsage
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, batch: Batch) -> BatchAnswer:
        def ended(status: str) -> int | None:
            return _whole(batch.ended) if batch.status == status else None

        counts, usage = batch.counts, batch.usage
        return cls(
            id=batch.id,
            endpoint=batch.endpoint,
            model=batch.model,
            errors=_problems(batch),
            input_file_id=batch.input_file,
            completion_window=batch.window,
            status=batch.status,
            output_file_id=batch.output_file,
            error_file_id=batch.error_file,
            created_at=int(batch.created),
            in_progress_at=_whole(batch.started),
            expires_at=int(batch.expires),
            finalizing_at=_whole(batch.finalizing),
            completed_at=ended("completed"),
            failed_at=ended("failed"),
            expired_at=ended("expired"),
            cancelling_at=_whole(batch.cancelling),
            cancelled_at=ended("cancelled"),
            request_counts=CountsAnswer(counts.total, counts.completed, counts.failed),
            usage=BatchUsage(
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.prompt_tokens + usage.completion_tokens,
                InputDetails(usage.cached_tokens),
                OutputDetails(),
            ),
            metadata=batch.metadata,
        )


class BatchList(ListAnswer[BatchAnswer], frozen=True, kw_only=True):
    """Answer of GET /v1/batches."""


def _whole(time_s: float | None) -> int | None:
    return None if time_s is None else int(time_s)


def _problems(batch: Batch) -> ProblemList | None:
    if not batch.num_problems:
        return None
    return ProblemList(data=[ProblemAnswer.of(problem) for problem in batch.problems], total=batch.num_problems)
