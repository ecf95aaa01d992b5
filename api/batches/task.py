"""The task: one line of a batch's file, as the request that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.wire.requests import AnyPrompt

from .. import parameters
from ..ask import Ask, ask
from ..assembly import Shape, chat_answer, completion_answer, embedding_answer
from ..prompts import chat_prompt, completion_prompt, embedding_prompt
from ..schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from .splitter import Line

MAX_CUSTOM_ID = 512


class TaskLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line as it stands in the file."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=MAX_CUSTOM_ID)]
    method: str
    url: str
    body: msgspec.Raw


class CustomId(msgspec.Struct, frozen=True):
    """What can be known of a line that is not understood otherwise."""

    custom_id: str


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """`shape` makes the answer's body of what was generated."""

    number: int
    custom_id: str
    ask: Ask
    shape: Shape


class LineError(Exception):
    """A line is no request; `code` is OpenAI's where it has one."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class Endpoint(msgspec.Struct, frozen=True):
    """How the bodies of one endpoint are read, asked and answered."""

    request: Any
    prompt: Callable[..., AnyPrompt]
    shape: Callable[[Any], Shape]


ENDPOINTS = {
    "/v1/chat/completions": Endpoint(
        ChatRequest, chat_prompt, lambda body: partial(chat_answer, logprobs=bool(body.logprobs))
    ),
    "/v1/completions": Endpoint(
        CompletionRequest,
        completion_prompt,
        lambda body: partial(completion_answer, logprobs=body.logprobs is not None),
    ),
    "/v1/embeddings": Endpoint(
        EmbeddingRequest,
        embedding_prompt,
        lambda body: partial(
            embedding_answer, base64_floats=body.encoding_format == "base64", dimensions=body.dimensions
        ),
    ),
}

_decode = msgspec.json.Decoder(TaskLine).decode
_decode_id = msgspec.json.Decoder(CustomId).decode


def read_task(line: Line, endpoint: str, max_bytes: int) -> Task:
    """Raises LineError naming the field."""
    if line.body is None:
        raise LineError("line_too_long", f"This line is longer than {max_bytes} bytes; a request may not be longer.")
    outer = _outer(line.body)
    if outer.method != "POST":
        raise LineError("invalid_method", f"'method' must be 'POST', not {outer.method[:20]!r}.", "method")
    if outer.url != endpoint:
        raise LineError(
            "invalid_url", f"'url' is {outer.url[:80]!r}, but this batch is for the endpoint {endpoint!r}.", "url"
        )
    kind = ENDPOINTS[endpoint]
    try:
        body = parameters.read(bytes(outer.body), kind.request)
        if getattr(body, "stream", None):
            raise parameters.unsupported("stream", "must be left out: answers of a batch are not streamed")
        # What contradicts itself shows when the prompt is built.
        kind.prompt(body, "x", 0.0, 0.0)
    except RequestError as error:
        param = f"body.{error.param}" if error.param else "body"
        code = error.code.value if error.code != Code.INVALID_JSON else "invalid_json_line"
        raise LineError(code, f"body: {error.message}", param) from None
    wanted = ask(body, partial(kind.prompt, body))
    return Task(number=line.number, custom_id=outer.custom_id, ask=wanted, shape=kind.shape(body))


def custom_id_of(line: Line) -> str | None:
    """The line's id, also where the rest cannot be understood."""
    try:
        return None if line.body is None else _decode_id(line.body).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _outer(body: bytes) -> TaskLine:
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        param = path.removeprefix(".").removesuffix("`") or None
        for field in TaskLine.__struct_fields__:
            if f"required field `{field}`" in message:
                raise LineError("missing_required_parameter", f"'{field}' is required.", field) from None
        if "unknown field `" in message:
            name = message.partition("unknown field `")[2].removesuffix("`")
            raise LineError(
                "unknown_parameter", f"{name[:60]!r} is not known here; requests go into 'body'.", name[:60]
            ) from None
        raise LineError("invalid_json_line", _sentence(f"'{param}': {message}" if param else message), param) from None
    except UnicodeDecodeError:
        raise LineError("invalid_json_line", "This line is not valid UTF-8.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise LineError("invalid_json_line", f"This line is not valid JSON: {error}.") from None


def _sentence(text: str) -> str:
    return f"{text}." if not text.endswith(".") else text
