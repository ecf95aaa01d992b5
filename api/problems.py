"""Problems: any failure, in exactly the shape that OpenAI's clients expect."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from inferflux.broker.errors import (
    HTTP_ERRORS,
    BrokerError,
    BrokerUnavailable,
    ClaimLost,
    Code,
    HttpError,
    MessageTooLarge,
    ObjectDamaged,
    QueueFull,
    RequestError,
    RevisionConflict,
    StoreFull,
    TapeFull,
    TooManyLanes,
)
from inferflux.broker.wire.requests import Failure
from inferflux.config.logs import get_logger
from inferflux.registry.store import RecordRefused

log = get_logger("api")

RETRY_AFTER_S = 1.0

_BY_STATUS = {
    404: (Code.NOT_FOUND, "there is nothing at {method} {path}; the endpoints are listed at /docs"),
    405: (Code.METHOD_NOT_ALLOWED, "{path} does not answer {method}"),
    413: (Code.REQUEST_TOO_LARGE, "the request body is larger than this server accepts"),
}
_OTHER = HttpError(500, "server_error")


class ProblemDetail(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str


class Problem(msgspec.Struct, frozen=True):
    """The body of every response that is not a success."""

    error: ProblemDetail


def to_failure(error: Exception) -> Failure:
    """What the sender may know about an error of ours."""
    match error:
        case RequestError():
            return Failure(
                code=error.code.value, message=error.message, param=error.param, retry_after_s=error.retry_after_s
            )
        case RecordRefused():
            return Failure(
                code=Code.CONFLICT.value,
                message=f"an entry of the policy store was changed by somebody without its passphrase ({error}); "
                "`inferctl admin policy repair` puts back what is in force",
            )
        case MessageTooLarge():
            return Failure(
                code=Code.REQUEST_TOO_LARGE.value, message="the request is larger than the message broker accepts"
            )
        case QueueFull():
            return _overload(Code.QUEUE_FULL, "this model's queue is full for you; try again shortly")
        case TooManyLanes():
            return _overload(Code.TOO_MANY_LANES, "too many tenants are waiting at once; try again shortly")
        case TapeFull():
            return _overload(Code.TAPE_FULL, "the server holds as much output as it may; try again shortly")
        case StoreFull():
            return Failure(code=Code.STORAGE_FULL.value, message="the server has no room for files; tell its operator")
        case BrokerUnavailable():
            return _overload(Code.BROKER_UNAVAILABLE, "the message broker cannot be reached; try again shortly")
        case RevisionConflict() | ClaimLost():
            return Failure(
                code=Code.CONFLICT.value, message="somebody else changed this at the same moment; look, and try again"
            )
        case BrokerError() if not isinstance(error, ObjectDamaged):
            return _overload(Code.BROKER_UNAVAILABLE, "the message broker refused this; the server's log says why")
        case _:
            return Failure(code=Code.INTERNAL_ERROR.value, message="the server failed to handle this request")


def http_error(code: str) -> HttpError:
    """Status and type of a code; a code from a newer worker is a server error."""
    try:
        return HTTP_ERRORS[Code(code)]
    except ValueError:
        return _OTHER


def problem(failure: Failure) -> Problem:
    return Problem(ProblemDetail(failure.message, http_error(failure.code).type, failure.param, failure.code))


def respond(failure: Failure, headers: dict[str, str] | None = None) -> Response[bytes]:
    """The whole HTTP answer to a request that failed before any of its output was sent."""
    headers = dict(headers or {})
    if failure.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(failure.retry_after_s)))
    status = http_error(failure.code).status
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    body = msgspec.json.encode(problem(failure))
    return Response(body, status_code=status, headers=headers, media_type="application/json")


class FailureError(Exception):
    """A failure from the wire, whose code may be unknown here."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def _overload(code: Code, message: str) -> Failure:
    return Failure(code=code.value, message=message, retry_after_s=RETRY_AFTER_S)


def _on_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    code, message = _BY_STATUS.get(error.status_code, (None, ""))
    if code is None:
        if error.status_code >= 500:
            return _on_error(request, error)
        code, message = Code.INVALID_REQUEST, "the server could not read this request"
    message, param = message.format(method=request.method, path=request.url.path), None
    if error.status_code == 400 and (wrong := _wrong_parameter(error)) is not None:
        param, message = wrong[0], f"'{wrong[0]}': {wrong[1]}"
    allow = {key: value for key, value in (error.headers or {}).items() if key.lower() == "allow"}
    return respond(Failure(code=code.value, message=message, param=param), allow)


def _wrong_parameter(error: HTTPException) -> tuple[str, str] | None:
    """Name and fault of the first query parameter that Litestar could not read."""
    for each in error.extra if isinstance(error.extra, list) else ():
        if isinstance(each, dict) and each.get("source") == "query" and "key" in each:
            fault = str(each.get("message", "cannot be read"))
            return str(each["key"]), fault[:1].lower() + fault[1:]
    return None


def _on_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    if isinstance(error, FailureError):
        return respond(error.failure)
    failure = to_failure(error)
    if isinstance(error, BrokerError):
        log.warning("request failed at the broker", reason=str(error), method=request.method, path=request.url.path)
    if failure.code == Code.INTERNAL_ERROR:
        log.error("request crashed", error=error, method=request.method, path=request.url.path)
    return respond(failure)


EXCEPTION_HANDLERS: ExceptionHandlersMap = {HTTPException: _on_http, Exception: _on_error}
