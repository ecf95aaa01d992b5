"""The error tree, and the one table that maps an error code to what an HTTP client sees.

InferFluxError
├── ConfigError            a setting, file or credential is wrong; the process does not start
├── RequestError           the request failed; `code` says how, and becomes the terminal frame or response
└── BrokerError            the broker could not do what was asked
    ├── BrokerUnavailable  not connected, or no answer in time
    ├── MessageTooLarge    the server takes no message of this size
    ├── QueueFull          the lane, or the whole queue, holds as many prompts as it may
    ├── TooManyLanes       the stream holds as many consumers as it may
    ├── TapeFull           the tape has no room for another frame
    ├── StoreFull          the object store has no room for another chunk
    ├── ObjectDamaged      an object is not what was stored: a chunk is missing, or the digest is another
    ├── ClaimLost          somebody else wrote the claim first; `actual_seq` is theirs when known
    └── RevisionConflict   a KV entry changed since it was read
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from inferflux.config.errors import ConfigError as ConfigError
from inferflux.config.errors import InferFluxError as InferFluxError


class Code(StrEnum):
    """Machine-readable error codes: stable, and the same on NATS, HTTP and in logs."""

    INVALID_REQUEST = "invalid_request"
    INVALID_JSON = "invalid_json"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    REQUEST_TOO_LARGE = "request_too_large"
    INVALID_API_KEY = "invalid_api_key"
    INSUFFICIENT_SCOPE = "insufficient_scope"
    CLASS_NOT_ALLOWED = "class_not_allowed"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    INSUFFICIENT_QUOTA = "insufficient_quota"
    QUOTA_EXCEEDED = "quota_exceeded"
    STORAGE_FULL = "storage_full"
    CONFLICT = "conflict"
    QUEUE_FULL = "queue_full"
    CONTENT_FILTER = "content_filter"
    CANCELLED = "cancelled"
    TOO_MANY_LANES = "too_many_lanes"
    TAPE_FULL = "tape_full"
    BROKER_UNAVAILABLE = "broker_unavailable"
    DRAINING = "draining"
    IDENTITY_UNAVAILABLE = "identity_unavailable"
    AUDIT_UNAVAILABLE = "audit_unavailable"
    GUARDRAIL_UNAVAILABLE = "guardrail_unavailable"
    NO_BACKEND = "no_backend"
    QUEUE_TIMEOUT = "queue_timeout"
    OUT_OF_CAPACITY = "out_of_capacity"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    STREAM_DIVERGED = "stream_diverged"
    STREAM_GONE = "stream_gone"
    ENGINE_ERROR = "engine_error"
    INTERNAL_ERROR = "internal_error"


class HttpError(NamedTuple):
    """How OpenAI's clients expect a code: status, and the `type` field of the error body."""

    status: int
    type: str


HTTP_ERRORS: dict[Code, HttpError] = {
    Code.INVALID_REQUEST: HttpError(400, "invalid_request_error"),
    Code.INVALID_JSON: HttpError(400, "invalid_request_error"),
    Code.UNSUPPORTED_PARAMETER: HttpError(400, "invalid_request_error"),
    Code.CONTEXT_LENGTH_EXCEEDED: HttpError(400, "invalid_request_error"),
    Code.CONTENT_FILTER: HttpError(400, "invalid_request_error"),
    Code.INVALID_API_KEY: HttpError(401, "authentication_error"),
    Code.INSUFFICIENT_SCOPE: HttpError(403, "permission_error"),
    Code.CLASS_NOT_ALLOWED: HttpError(403, "permission_error"),
    Code.MODEL_NOT_ALLOWED: HttpError(403, "permission_error"),
    Code.MODEL_NOT_FOUND: HttpError(404, "invalid_request_error"),
    Code.NOT_FOUND: HttpError(404, "invalid_request_error"),
    Code.METHOD_NOT_ALLOWED: HttpError(405, "invalid_request_error"),
    Code.STREAM_GONE: HttpError(410, "invalid_request_error"),
    Code.REQUEST_TOO_LARGE: HttpError(413, "invalid_request_error"),
    Code.UNSUPPORTED_MEDIA_TYPE: HttpError(415, "invalid_request_error"),
    Code.IDEMPOTENCY_CONFLICT: HttpError(422, "invalid_request_error"),
    Code.RATE_LIMIT_EXCEEDED: HttpError(429, "rate_limit_error"),
    Code.INSUFFICIENT_QUOTA: HttpError(429, "insufficient_quota"),
    Code.QUEUE_FULL: HttpError(429, "rate_limit_error"),
    Code.QUOTA_EXCEEDED: HttpError(403, "permission_error"),
    Code.CONFLICT: HttpError(409, "invalid_request_error"),
    Code.STORAGE_FULL: HttpError(507, "server_error"),
    Code.CANCELLED: HttpError(499, "request_cancelled"),
    Code.ENGINE_ERROR: HttpError(500, "server_error"),
    Code.INTERNAL_ERROR: HttpError(500, "server_error"),
    Code.ATTEMPTS_EXHAUSTED: HttpError(500, "server_error"),
    Code.STREAM_DIVERGED: HttpError(502, "server_error"),
    Code.TOO_MANY_LANES: HttpError(503, "overloaded_error"),
    Code.TAPE_FULL: HttpError(503, "overloaded_error"),
    Code.BROKER_UNAVAILABLE: HttpError(503, "overloaded_error"),
    Code.DRAINING: HttpError(503, "overloaded_error"),
    Code.IDENTITY_UNAVAILABLE: HttpError(503, "overloaded_error"),
    Code.AUDIT_UNAVAILABLE: HttpError(503, "overloaded_error"),
    Code.GUARDRAIL_UNAVAILABLE: HttpError(503, "overloaded_error"),
    Code.NO_BACKEND: HttpError(503, "overloaded_error"),
    Code.OUT_OF_CAPACITY: HttpError(503, "overloaded_error"),
    Code.QUEUE_TIMEOUT: HttpError(504, "server_error"),
}

DENIALS = frozenset(
    {
        Code.CONTENT_FILTER,
        Code.INVALID_API_KEY,
        Code.INSUFFICIENT_SCOPE,
        Code.CLASS_NOT_ALLOWED,
        Code.MODEL_NOT_ALLOWED,
        Code.RATE_LIMIT_EXCEEDED,
        Code.INSUFFICIENT_QUOTA,
        Code.GUARDRAIL_UNAVAILABLE,
        Code.IDENTITY_UNAVAILABLE,
    }
)
"""Codes that say that somebody was refused: each goes into the audit log."""


class RequestError(InferFluxError):
    """A request failed for a reason its sender can be told.

    `param` names the offending field in the sender's own terms; `retry_after_s` is set where trying again helps.
    """

    def __init__(
        self, code: Code, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class BrokerError(InferFluxError):
    """The broker could not do what was asked."""


class BrokerUnavailable(BrokerError):
    """Not connected to the broker, or it gave no answer in time: whether the call took effect is unknown."""


class MessageTooLarge(BrokerError):
    """The server takes no message of this size (its `max_payload`): trying again is in vain."""


class QueueFull(BrokerError):
    """The lane, or the whole queue, holds as many prompts as it may."""


class TooManyLanes(BrokerError):
    """The prompt stream holds as many consumers as it may; a new lane has to wait."""


class TapeFull(BrokerError):
    """The tape has reached its byte limit and refuses new frames."""


class StoreFull(BrokerError):
    """The object store has no room for another chunk."""


class ObjectDamaged(BrokerError):
    """An object is not what was stored: a chunk is missing, or its digest is another."""


class ClaimLost(BrokerError):
    """A compare-and-set on a claim, or a terminal frame fenced by one, found another claim in its place."""

    def __init__(self, message: str, *, actual_seq: int | None = None) -> None:
        super().__init__(message)
        self.actual_seq = actual_seq


class RevisionConflict(BrokerError):
    """A KV entry is not at the revision that the writer expected."""
