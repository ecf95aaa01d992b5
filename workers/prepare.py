"""From a prompt on the wire to the jobs an engine runs: rendered, tokenized and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.ownership import usable
from inferflux.broker.wire.requests import (
    AnyPrompt,
    ChatPrompt,
    CompletionPrompt,
    EmbeddingPrompt,
    Generation,
    decode_prompt,
)

from .backends.backend import Capacity, SamplingParams
from .engine.job import Job
from .render import Renderer

MAX_CHOICES = 256


def parse(body: bytes) -> AnyPrompt:
    """The prompt in a message body. Raises RequestError naming the field that is wrong."""
    try:
        prompt = decode_prompt(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        param = path.rstrip("`").removeprefix("$.") or None
        raise RequestError(Code.INVALID_REQUEST, message, param=None if param == "$" else param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(Code.INVALID_JSON, f"the message body is not valid JSON: {error}") from None
    except RecursionError:
        raise RequestError(Code.INVALID_JSON, "the message body is nested too deeply") from None
    if not usable(prompt.id):
        raise RequestError(Code.INVALID_REQUEST, "id is too long for a subject once it is encoded", param="id")
    return prompt


def echoes(prompt: CompletionPrompt, jobs: Sequence[Job], text: Callable[[Sequence[int]], str]) -> dict[int, str]:
    """What `echo` puts in front of each choice: the prompt as it was given; `text` spells one of token ids."""
    given = [prompt.prompt] if isinstance(prompt.prompt, str) else list(prompt.prompt)
    if all(isinstance(item, str) for item in given):
        return {job.choice: str(given[job.choice // prompt.n]) for job in jobs}
    spelled = {job.prompt: text(job.prompt) for job in jobs if job.choice % prompt.n == 0}
    return {job.choice: spelled[job.prompt] for job in jobs}


def prepare(
    prompt: AnyPrompt,
    renderer: Renderer,
    capacity: Capacity,
    *,
    request: str,
    seed: int,
    template: Job,
) -> list[Job]:
    """One job for each choice, in order of choice.

    `template` carries what the worker knows of the lane (class, salt). Raises RequestError when the prompt is empty,
    names tokens that the model lacks, or does not fit the context. Takes time that grows with the prompt: call it off
    the event loop.
    """
    texts = _prompts(prompt, renderer, capacity)
    num_samples = 1 if isinstance(prompt, EmbeddingPrompt) else prompt.n
    if len(texts) * num_samples > MAX_CHOICES:
        raise RequestError(Code.INVALID_REQUEST, f"a request may ask for {MAX_CHOICES} choices at most", param="n")
    jobs = []
    for number, tokens in enumerate(texts):
        job = msgspec.structs.replace(template, request=request, prompt=tokens)
        if isinstance(prompt, EmbeddingPrompt):
            _check_context(len(tokens), 0, capacity, "input")
            jobs.append(msgspec.structs.replace(job, choice=number, embed=True))
        else:
            jobs += _samples(prompt, job, capacity, seed, first=number * num_samples)
    return jobs


def _prompts(prompt: AnyPrompt, renderer: Renderer, capacity: Capacity) -> list[tuple[int, ...]]:
    match prompt:
        case ChatPrompt(messages=messages):
            if not messages:
                raise RequestError(Code.INVALID_REQUEST, "messages must not be empty", param="messages")
            return [tuple(renderer.chat(messages, now_s=prompt.created or None))]
        case CompletionPrompt(prompt=content):
            return _tokenized(content, "prompt", renderer, capacity)
        case EmbeddingPrompt(input=content):
            return _tokenized(content, "input", renderer, capacity)


def _tokenized(
    content: str | Sequence[str | int | Sequence[int]], param: str, renderer: Renderer, capacity: Capacity
) -> list[tuple[int, ...]]:
    items: Sequence[str | int | Sequence[int]] = [content] if isinstance(content, str) else content
    if items and all(isinstance(item, int) for item in items):
        items = [[item for item in items if isinstance(item, int)]]
    prompts = []
    for item in items:
        if isinstance(item, int):
            raise RequestError(Code.INVALID_REQUEST, "mixes token ids with other prompts", param=param)
        tokens = tuple(renderer.text(item)) if isinstance(item, str) else tuple(item)
        if not tokens:
            raise RequestError(Code.INVALID_REQUEST, f"{param} must not be empty", param=param)
        if not all(0 <= token < capacity.vocab_size for token in tokens):
            raise RequestError(
                Code.INVALID_REQUEST, f"token ids must be at least 0 and below {capacity.vocab_size}", param=param
            )
        prompts.append(tokens)
    if not prompts:
        raise RequestError(Code.INVALID_REQUEST, f"{param} must not be empty", param=param)
    return prompts


def _samples(prompt: Generation, job: Job, capacity: Capacity, seed: int, *, first: int) -> list[Job]:
    room = _check_context(
        len(job.prompt), prompt.max_tokens or 1, capacity, "messages" if isinstance(prompt, ChatPrompt) else "prompt"
    )
    sampling = SamplingParams(
        temperature=prompt.temperature,
        top_p=prompt.top_p,
        top_k=prompt.top_k,
        min_p=prompt.min_p,
        presence_penalty=prompt.presence_penalty,
        frequency_penalty=prompt.frequency_penalty,
        repetition_penalty=prompt.repetition_penalty,
        logit_bias=_logit_bias(prompt, capacity),
        num_logprobs=prompt.logprobs,
    )
    base = seed if prompt.seed is None else prompt.seed
    return [
        msgspec.structs.replace(
            job,
            choice=first + sample,
            max_tokens=prompt.max_tokens or room,
            sampling=msgspec.structs.replace(sampling, seed=(base + sample) & 0xFFFFFFFF),
            stop=prompt.stop,
            ignore_eos=prompt.ignore_eos,
        )
        for sample in range(prompt.n)
    ]


def _check_context(num_prompt: int, num_output: int, capacity: Capacity, param: str) -> int:
    room = capacity.context_length - num_prompt
    if room < num_output:
        asked = f"{num_prompt} tokens of {param}" + (f" and {num_output} of output" if num_output > 1 else "")
        raise RequestError(
            Code.CONTEXT_LENGTH_EXCEEDED,
            f"this model's context holds {capacity.context_length} tokens, and the request needs {asked}; "
            "shorten it or ask for fewer tokens",
            param=param,
        )
    return room


def _logit_bias(prompt: Generation, capacity: Capacity) -> tuple[tuple[int, float], ...]:
    biases = []
    for token, bias in prompt.logit_bias.items():
        if not token.isdecimal() or int(token) >= capacity.vocab_size:
            raise RequestError(
                Code.INVALID_REQUEST,
                f"logit_bias names token {token!r}; ids are whole numbers below {capacity.vocab_size}",
                param="logit_bias",
            )
        biases.append((int(token), bias))
    return tuple(biases)
