"""Which prompts begin alike: a digest that leads them to a worker that has computed their beginning before."""

from __future__ import annotations

import hashlib

from .wire.requests import AnyPrompt, ChatPrompt, CompletionPrompt

MIN_CHARS = 256
MAX_CHARS = 1024


def prefix_digest(prompt: AnyPrompt, salt: str) -> str | None:
    """Eight hexadecimal digits of a prompt's beginning; None for what has no text in common with anything.

    A chat's beginning ends with its first user message, so that every turn of a conversation has the same digest;
    a completion's is its first `MAX_CHARS` characters, where there are `MIN_CHARS` at all. `salt` is the tenant's:
    tenants that share no cache have no digest in common.
    """
    match prompt:
        case ChatPrompt(messages=messages):
            num_first = next((number for number, each in enumerate(messages) if each.role == "user"), 0) + 1
            beginning = "\n".join(f"{message.role}\n{message.content}" for message in messages[:num_first])
        case CompletionPrompt(prompt=str() as beginning) if len(beginning) >= MIN_CHARS:
            pass
        case _:
            return None
    text = f"{salt}\n{beginning[:MAX_CHARS]}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
