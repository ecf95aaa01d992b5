"""The ask: a parsed body, as what it asks to be published and how its answer is to look."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

import msgspec

from inferflux.broker.wire.requests import AnyPrompt

from .schemas import CompletionRequest, EmbeddingRequest, GenerationRequest, Tier

Kind = Literal["chat", "completion", "embedding"]
Build = Callable[[str, float, float], AnyPrompt]
"""Makes the prompt, given request id, creation time and deadline."""

_canonical = msgspec.json.Encoder(order="deterministic")


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """`digest` is the same for bodies that ask for the same answer, streamed or whole."""

    kind: Kind
    model: str | None
    tier: Tier | None
    build: Build
    digest: str
    include_usage: bool = False


def ask(body: GenerationRequest | EmbeddingRequest, build: Build) -> Ask:
    """What this body asks for."""
    kind: Kind = "chat"
    include_usage = False
    same: msgspec.Struct = body
    if isinstance(body, GenerationRequest):
        kind = "completion" if isinstance(body, CompletionRequest) else "chat"
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        same = msgspec.structs.replace(body, stream=None, stream_options=None)
    else:
        kind = "embedding"
    return Ask(
        kind=kind,
        model=body.model,
        tier=body.service_tier,
        build=build,
        digest=hashlib.sha256(kind.encode() + _canonical.encode(same)).hexdigest(),
        include_usage=include_usage,
    )
