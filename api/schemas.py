"""What clients may send: OpenAI's requests, and the extras that other servers' clients know.

Every optional field also takes null, which means its default. Fields that OpenAI has and we do not are no fields
here; `parameters.py` says which of them are harmless.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

MAX_CHOICES = 128
MAX_INPUTS = 2048
DEFAULT_COMPLETION_TOKENS = 16

Temperature = Annotated[float, Meta(ge=0, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=10)]
Tokens = Annotated[int, Meta(ge=1)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenId = Annotated[str, Meta(pattern=r"^[0-9]{1,9}$(?!\n)")]
StopText = Annotated[str, Meta(min_length=1)]
StopTexts = Annotated[tuple[StopText, ...], Meta(max_length=4)]
NumChoices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
NumTopLogprobs = Annotated[int, Meta(ge=0, le=20)]
NumLogprobs = Annotated[int, Meta(ge=0, le=5)]
Id = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Texts: TypeAlias = str | tuple[str | Id | tuple[Id, ...], ...]
Tier = Literal["auto", "default", "flex", "priority"]
Role = Literal["system", "developer", "user", "assistant", "tool"]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`include_usage` adds a last chunk with the token counts."""

    include_usage: bool | None = None


class TextPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The only kind of content part that a text model reads."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn. An assistant's content may be null, any other's may not."""

    role: Role
    content: str | tuple[TextPart, ...] | None = None
    name: str | None = None
    tool_call_id: str | None = None


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What completions and chats share. `top_k`, `min_p`, `repetition_penalty` and `ignore_eos` are extras."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: TopK | None = None
    min_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    stop: StopText | StopTexts | None = None
    seed: Seed | None = None
    n: NumChoices | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    service_tier: Tier | None = None


class ChatRequest(GenerationRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: NumTopLogprobs | None = None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/completions. `prompt` is text, token ids, or several of either."""

    prompt: Texts
    echo: bool | None = None
    logprobs: NumLogprobs | None = None
    best_of: NumChoices | None = None


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/embeddings. `input` is text, token ids, or several of either."""

    input: Texts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None
    service_tier: Tier | None = None
