"""What one attempt did, as spans: the wait in the queue, the engine's prefill, the engine's decode."""

from __future__ import annotations

import time

from inferflux.broker.subjects import HEADER_TRACEPARENT
from inferflux.broker.trace import Tracer

from .attempt import Attempt


def record(tracer: Tracer, attempt: Attempt, now_s: float) -> None:
    """Spans of an attempt that has ended just now (`now_s`, monotonic), below that of its request."""
    if attempt.claimed_s is None:
        return
    unix_s = time.time() - now_s
    claimed_s = unix_s + attempt.claimed_s
    delivery, prompt, answer = attempt.delivery, attempt.task.prompt, attempt.answer
    span = tracer.attempt(delivery.lane, delivery.headers.get(HEADER_TRACEPARENT), claimed_s)
    if prompt is not None and prompt.created:
        tracer.part(span, "queue", prompt.created, claimed_s, {"inferflux.num_delivered": delivery.num_delivered})
    attributes: dict[str, str | int] = {
        "messaging.message.id": attempt.key.request,
        "inferflux.attempt": attempt.num_attempts,
        "inferflux.outcome": attempt.outcome,
    }
    error = None
    if answer is not None:
        usage = answer.usage
        attributes |= {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
        }
        error = None if answer.error is None else answer.error.code
        if answer.first_token_s is not None:
            first_s = unix_s + answer.first_token_s
            cached = {"gen_ai.usage.input_tokens": usage.prompt_tokens, "inferflux.cached_tokens": usage.cached_tokens}
            tracer.part(span, "prefill", claimed_s, first_s, cached)
            tracer.part(
                span, "decode", first_s, unix_s + now_s, {"gen_ai.usage.output_tokens": usage.completion_tokens}
            )
    span.end(attributes, error=error or ("lost" if attempt.outcome == "lost" else None), at_s=unix_s + now_s)
