"""What clients get: OpenAI's response objects, as they go out."""

from __future__ import annotations

import codecs
from typing import Literal

import msgspec

from inferflux.broker.wire.requests import TokenLogprob, Usage

from .schemas import Tier


class PromptDetails(msgspec.Struct, frozen=True):
    """Prompt tokens that the prefix cache held."""

    cached_tokens: int


class UsageAnswer(msgspec.Struct, frozen=True):
    """Token counts, in OpenAI's names."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails

    @classmethod
    def of(cls, usage: Usage) -> UsageAnswer:
        total = usage.prompt_tokens + usage.completion_tokens
        return cls(usage.prompt_tokens, usage.completion_tokens, total, PromptDetails(usage.cached_tokens))


class TopLogprob(msgspec.Struct, frozen=True):
    """One alternative of a chat token."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class ChatLogprob(msgspec.Struct, frozen=True):
    """A chat token with its alternatives."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of one chat choice or chunk."""

    content: list[ChatLogprob]
    refusal: None = None

    @classmethod
    def of(cls, tokens: tuple[TokenLogprob, ...]) -> ChatLogprobs:
        return cls(
            [
                ChatLogprob(
                    token.token,
                    token.logprob,
                    token.bytes,
                    [TopLogprob(top.token, top.logprob, top.bytes) for top in token.top],
                )
                for token in tokens
            ]
        )


class TextOffsets:
    """Where the tokens of one choice begin in its text, in characters: all parts of a character begin where it does."""

    def __init__(self) -> None:
        self._num_chars = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, token: TokenLogprob) -> int:
        """Call it with each token once, in order."""
        start = self._num_chars
        self._num_chars += len(self._decoder.decode(bytes(token.bytes)))
        return start


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of one completion choice or chunk. As at OpenAI, a token that is only part of a character
    reads `bytes:\\xe2\\x82`; `text_offset` counts characters from the choice's start."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]

    @classmethod
    def of(cls, tokens: tuple[TokenLogprob, ...], offsets: TextOffsets) -> CompletionLogprobs:
        # Alternatives come by falling probability: of those that read the same, the likeliest stays.
        tops = [{_name(top): top.logprob for top in reversed(token.top)} for token in tokens]
        return cls(
            [_name(token) for token in tokens],
            [token.logprob for token in tokens],
            tops if any(tops) else None,
            [offsets.take(token) for token in tokens],
        )


def _name(token: TokenLogprob) -> str:
    data = bytes(token.bytes)
    if "\ufffd" not in token.token or data == token.token.encode():
        return token.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class ChatAnswerMessage(msgspec.Struct, frozen=True):
    """What the assistant said."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One sample of a chat."""

    index: int
    message: ChatAnswerMessage
    finish_reason: str | None
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    service_tier: Tier
    choices: list[ChatChoice]
    usage: UsageAnswer


class CompletionChoice(msgspec.Struct, frozen=True):
    """One sample of one prompt."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: CompletionLogprobs | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    service_tier: Tier
    choices: list[CompletionChoice]
    usage: UsageAnswer


class EmbeddingItem(msgspec.Struct, frozen=True):
    """One input's vector: numbers, or little-endian 32-bit floats in base64."""

    index: int
    embedding: tuple[float, ...] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Token counts of an embedding request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class ModelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One model. `ready` says whether a live worker has it; `stub_reason` why the stub stands in for it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "inferflux"
    backend: str
    stub: bool
    stub_reason: str | None
    ready: bool
    num_workers: int
    context_length: int | None
    default: bool
    aliases: tuple[str, ...]


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]
