"""What an engine of a given capacity can run at all."""

from __future__ import annotations

from inferflux.broker.errors import Code
from inferflux.broker.wire.requests import Failure, failure

from ..backends.backend import Capacity
from .job import Job


def max_length(capacity: Capacity) -> int:
    """Tokens of one sequence, prompt and output together: its context, or all pages where they are fewer."""
    return min(capacity.context_length, capacity.num_pages * capacity.page_size)


def refusal(job: Job, capacity: Capacity) -> Failure | None:
    """Why this job could never run, if so."""
    num_tokens, vocab_size = len(job.prompt), capacity.vocab_size
    if not num_tokens:
        return failure(Code.INVALID_REQUEST, "the prompt has no tokens", param="prompt")
    if min(job.prompt) < 0 or max(job.prompt) >= vocab_size:
        return failure(Code.INVALID_REQUEST, f"token ids must be in 0..{vocab_size - 1}", param="prompt")
    for token, _ in job.sampling.logit_bias:
        if not 0 <= token < vocab_size:
            return failure(Code.INVALID_REQUEST, f"there is no token {token}", param="logit_bias")
    num_needed = num_tokens + (not job.embed)
    if num_needed > capacity.context_length:
        text = f"the prompt has {num_tokens} tokens and the context length is {capacity.context_length}"
        return failure(Code.CONTEXT_LENGTH_EXCEEDED, text, param="prompt")
    if num_needed > max_length(capacity):
        text = f"the prompt has {num_tokens} tokens and the KV cache holds {max_length(capacity)}"
        return failure(Code.OUT_OF_CAPACITY, text, param="prompt")
    return None
