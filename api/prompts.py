"""From a client's request to the prompt that goes into the queue."""

from __future__ import annotations

from typing import Any

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.wire.requests import ChatPrompt, CompletionPrompt, EmbeddingPrompt, Message

from .parameters import unsupported
from .schemas import (
    DEFAULT_COMPLETION_TOKENS,
    MAX_CHOICES,
    MAX_INPUTS,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerationRequest,
    Texts,
)

LEAST_TOP_P = 1e-6


def chat_prompt(request: ChatRequest, ident: str, created: float, deadline: float) -> ChatPrompt:
    """Raises RequestError for parameters that contradict each other."""
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise _invalid("max_tokens", "give either max_tokens or max_completion_tokens, not both")
    if request.top_logprobs and not request.logprobs:
        raise _invalid("top_logprobs", "top_logprobs needs logprobs to be true")
    return ChatPrompt(
        id=ident,
        created=created,
        deadline=deadline,
        messages=tuple(_message(message, number) for number, message in enumerate(request.messages)),
        max_tokens=request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        **_generation(request),
    )


def completion_prompt(request: CompletionRequest, ident: str, created: float, deadline: float) -> CompletionPrompt:
    """Raises RequestError for parameters that contradict each other, or that we cannot combine."""
    num_samples = request.n or 1
    if request.best_of not in (None, num_samples):
        raise unsupported("best_of", "must equal n: this server returns every choice that it computes")
    if request.echo and request.logprobs is not None:
        raise unsupported("logprobs", "cannot be combined with echo: this server scores no prompt tokens")
    if _num_texts(request.prompt, "prompt") * num_samples > MAX_CHOICES:
        raise _invalid("n", f"a request may ask for {MAX_CHOICES} choices at most, over all its prompts")
    return CompletionPrompt(
        id=ident,
        created=created,
        deadline=deadline,
        prompt=request.prompt,
        echo=bool(request.echo),
        max_tokens=DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens,
        logprobs=request.logprobs,
        **_generation(request),
    )


def embedding_prompt(request: EmbeddingRequest, ident: str, created: float, deadline: float) -> EmbeddingPrompt:
    """Raises RequestError for inputs of mixed kinds, or too many of them."""
    if _num_texts(request.input, "input") > MAX_INPUTS:
        raise _invalid("input", f"a request may hold {MAX_INPUTS} inputs at most")
    return EmbeddingPrompt(id=ident, created=created, deadline=deadline, input=request.input)


def _invalid(param: str, message: str) -> RequestError:
    return RequestError(Code.INVALID_REQUEST, message, param=param)


def _generation(request: GenerationRequest) -> dict[str, Any]:
    if request.stream_options is not None and request.stream_options.include_usage and not request.stream:
        raise _invalid("stream_options", "stream_options.include_usage is only allowed when stream is true")
    given = {
        "temperature": request.temperature,
        # The wire wants more than 0; the smallest nucleus holds the likeliest token alone, which is what 0 means.
        "top_p": None if request.top_p is None else max(request.top_p, LEAST_TOP_P),
        # Some clients say -1 where others say 0: no limit.
        "top_k": None if request.top_k is None else max(request.top_k, 0),
        "min_p": request.min_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repetition_penalty": request.repetition_penalty,
        "stop": (request.stop,) if isinstance(request.stop, str) else request.stop,
        "seed": request.seed,
        "n": request.n,
        "logit_bias": request.logit_bias,
        "ignore_eos": request.ignore_eos,
    }
    return {name: value for name, value in given.items() if value is not None}


def _message(message: ChatMessage, number: int) -> Message:
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise _invalid(f"messages[{number}].content", f"a message of role {message.role!r} needs content")
        content = ""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return Message(role=message.role, content=text, name=message.name, tool_call_id=message.tool_call_id)


def _num_texts(texts: Texts, param: str) -> int:
    if isinstance(texts, str):
        return 1
    kinds = {type(item) for item in texts}
    if not texts:
        raise _invalid(param, f"{param} must not be empty")
    if len(kinds) > 1:
        raise _invalid(param, f"{param} must be all texts, all token ids, or all lists of token ids")
    return 1 if kinds == {int} else len(texts)
