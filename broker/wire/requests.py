"""A request on its way: the prompt, who claims it, what is answered, and what is kept of one that was given up."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from ..errors import Code
from .base import Wire

FinishReason: TypeAlias = Literal["stop", "length", "content_filter"]
"""Why a choice ended; `stop` is an end-of-sequence token or a stop string."""


class Message(Wire, frozen=True, kw_only=True):
    """One chat message. Only text content reaches a model; the API flattens text parts into one string.

    `tool_call_id` says which call a message of role `tool` answers, for templates that show it.
    """

    role: str
    content: str = ""
    name: str | None = None
    tool_call_id: str | None = None


class Prompt(Wire, frozen=True, kw_only=True, tag_field="type"):
    """What the queue holds: fields common to every kind of request.

    `id` is chosen by the publisher, unique for its owner, and may be encoded as a subject token.
    `deadline` is the latest time at which a worker may start; after it the answer is `queue_timeout`. `key` names the
    API key that the request came with; it counts in stamped messages only.
    """

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    created: float = 0.0
    deadline: float | None = None
    key: Annotated[str, Meta(max_length=2048)] | None = None


class Generation(Prompt, frozen=True, kw_only=True):
    """Fields shared by completions and chats; ranges are those of the OpenAI API.

    `seed` makes sampling reproducible; without one it is derived from the request, so that a second attempt
    samples what the first would have. `logprobs` is the number of alternatives to report for each token, 0 for
    the chosen token alone, None for no log probabilities.
    """

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(max_length=16)] = ()
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=128)] = 1
    logit_bias: dict[Annotated[str, Meta(max_length=10)], Annotated[float, Meta(ge=-100, le=100)]] = {}
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    ignore_eos: bool = False


class CompletionPrompt(Generation, frozen=True, kw_only=True, tag="completion"):
    """Text, token ids, or several of either; choice `i * n + j` is sample `j` of prompt `i`."""

    prompt: str | tuple[str | int | tuple[int, ...], ...]
    echo: bool = False


class ChatPrompt(Generation, frozen=True, kw_only=True, tag="chat"):
    """A conversation, rendered by the worker with the model's own chat template."""

    messages: tuple[Message, ...]


class EmbeddingPrompt(Prompt, frozen=True, kw_only=True, tag="embedding"):
    """Texts or token ids to embed; item `i` of the answer is a frame of choice `i`."""

    input: str | tuple[str | int | tuple[int, ...], ...]


AnyPrompt: TypeAlias = CompletionPrompt | ChatPrompt | EmbeddingPrompt


class Claim(Wire, frozen=True, kw_only=True):
    """One attempt at a request; the stream sequence of this message is the attempt's number.

    `num_attempts` counts the claims so far that ran and were not handed back, this one included. `prompt` is the
    claimed prompt's sequence in the stream: another prompt under the same id joins the first instead of running.
    """

    worker: str
    state: Literal["running", "released", "cancelled"] = "running"
    prompt: int = 0
    num_attempts: int = 1
    at: float = 0.0


class Head(Wire, frozen=True, kw_only=True):
    """What an API replica notes on the tape of a request that it has accepted: all that another replica needs to go
    on answering it. `prompt` is the prompt's sequence in the stream, `slot` the record of its idempotency key."""

    kind: Literal["chat", "completion", "embedding"]
    model: str
    service_class: str
    tenant: str
    created: float
    prompt: int
    include_usage: bool = False
    slot: str | None = None


class TokenLogprob(Wire, frozen=True, kw_only=True):
    """A token with its log probability (natural logarithm) and its exact bytes."""

    token: str
    logprob: float
    bytes: tuple[int, ...] = ()
    top: tuple[TokenLogprob, ...] = ()


class Usage(Wire, frozen=True, kw_only=True):
    """Token counts of one request; `cached_tokens` are prompt tokens that the prefix cache held."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Failure(Wire, frozen=True, kw_only=True):
    """Why a request ended without an answer. `code` is one of `errors.Code`; unknown codes are server errors."""

    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


class Frame(Wire, frozen=True, kw_only=True):
    """A piece of one choice, or the one terminal frame of a request (`usage` or `error` is set).

    `index` is the position of the first of `num_tokens` tokens within the choice. A frame holds several tokens when
    they came faster than they could be sent; `pieces` then splits `text` by token. `hash` is the running keyed hash
    of the choice's token ids after this frame; `prev`, on the first frame of an attempt, is the hash that it
    continues from. `sealed` holds the token ids for workers alone. `model` and `backend` come with the first frame.
    """

    id: str
    attempt: int
    choice: int = 0
    index: int = 0
    num_tokens: int = 0
    text: str = ""
    pieces: tuple[str, ...] | None = None
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    embedding: tuple[float, ...] | None = None
    hash: str | None = None
    prev: str | None = None
    sealed: str | None = None
    model: str | None = None
    backend: str | None = None
    usage: Usage | None = None
    error: Failure | None = None

    @property
    def terminal(self) -> bool:
        """Whether this is the frame that ends the request."""
        return self.usage is not None or self.error is not None


class _End(Wire, frozen=True, kw_only=True):
    usage: Any = None
    error: Any = None


class LostAttempt(Wire, frozen=True, kw_only=True):
    """A claim that came to nothing, as of a dead letter: who made it, when, and whether it was handed back."""

    worker: str
    at: float
    state: Literal["running", "released", "cancelled"] = "running"


class DeadLetter(Wire, frozen=True, kw_only=True):
    """Why and when a request was given up, and the message it came as, but for its body: that is kept beside it.

    `headers` are those of the prompt without its stamp.
    """

    owner: str
    request: str
    model: str
    service_class: str
    tenant: str
    reason: Failure
    at: float
    attempts: tuple[LostAttempt, ...] = ()
    headers: dict[str, str] = {}


_prompt_decoder: msgspec.json.Decoder[AnyPrompt] = msgspec.json.Decoder(AnyPrompt)
_frame_decoder = msgspec.json.Decoder(Frame)
_end_decoder = msgspec.json.Decoder(_End)
_claim_decoder = msgspec.json.Decoder(Claim)
_head_decoder = msgspec.json.Decoder(Head)
_dead_letter_decoder = msgspec.json.Decoder(DeadLetter)


def decode_prompt(body: bytes) -> AnyPrompt:
    """Raises msgspec.ValidationError naming the field, or msgspec.DecodeError for what is no JSON."""
    return _prompt_decoder.decode(body)


def decode_frame(body: bytes) -> Frame:
    return _frame_decoder.decode(body)


def ends(body: bytes) -> bool:
    """Whether a frame is the terminal one, also where the rest of it cannot be understood."""
    try:
        end = _end_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return end.usage is not None or end.error is not None


def decode_claim(body: bytes) -> Claim:
    """What is no claim counts as one of a worker that is gone: whoever has the prompt may put its own over it."""
    try:
        return _claim_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Claim(worker="", num_attempts=0)


def decode_head(body: bytes) -> Head:
    return _head_decoder.decode(body)


def decode_dead_letter(body: bytes) -> DeadLetter:
    return _dead_letter_decoder.decode(body)


def failure(code: Code, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> Failure:
    return Failure(code=code.value, message=message, param=param, retry_after_s=retry_after_s)
