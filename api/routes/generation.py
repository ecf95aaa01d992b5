"""POST /v1/chat/completions, /v1/completions and /v1/embeddings."""

from __future__ import annotations

from functools import partial
from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency

from ..ask import ask
from ..assembly import chat_answer, completion_answer, embedding_answer
from ..events import ChatEvents, CompletionEvents
from ..gateway import Gateway
from ..prompts import chat_prompt, completion_prompt, embedding_prompt
from ..schemas import ChatRequest, CompletionRequest, EmbeddingRequest


@post("/chat/completions", opt={"scope": "generate"}, status_code=200)
async def create_chat_completion(request: Request[Any, Any, Any], gateway: NamedDependency[Gateway]) -> Response[bytes]:
    """Continue a conversation."""
    body = await gateway.parse(request, ChatRequest)
    wanted = ask(body, partial(chat_prompt, body))
    exchange = await gateway.open(request, wanted)
    if body.stream:
        return await gateway.stream(exchange, ChatEvents(exchange.ticket, include_usage=wanted.include_usage))
    return await gateway.whole(exchange, partial(chat_answer, logprobs=bool(body.logprobs)))


@post("/completions", opt={"scope": "generate"}, status_code=200)
async def create_completion(request: Request[Any, Any, Any], gateway: NamedDependency[Gateway]) -> Response[bytes]:
    """Continue a text, or several."""
    body = await gateway.parse(request, CompletionRequest)
    wanted = ask(body, partial(completion_prompt, body))
    exchange = await gateway.open(request, wanted)
    if body.stream:
        return await gateway.stream(exchange, CompletionEvents(exchange.ticket, include_usage=wanted.include_usage))
    return await gateway.whole(exchange, partial(completion_answer, logprobs=body.logprobs is not None))


@post("/embeddings", opt={"scope": "generate"}, status_code=200)
async def create_embedding(request: Request[Any, Any, Any], gateway: NamedDependency[Gateway]) -> Response[bytes]:
    """Turn texts into vectors."""
    body = await gateway.parse(request, EmbeddingRequest)
    exchange = await gateway.open(request, ask(body, partial(embedding_prompt, body)))
    base64_floats = body.encoding_format == "base64"
    shape = partial(embedding_answer, base64_floats=base64_floats, dimensions=body.dimensions)
    return await gateway.whole(exchange, shape)
