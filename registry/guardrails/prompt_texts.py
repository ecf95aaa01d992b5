"""What a prompt says: the texts in it that reach a model, and the prompt with other texts in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from inferflux.broker.wire.requests import AnyPrompt, ChatPrompt, CompletionPrompt

Spell = Callable[[Sequence[int]], str]
"""The text of token ids."""

Item = str | int | tuple[int, ...]


def has_token_ids(prompt: AnyPrompt) -> bool:
    """Whether only somebody with the model's tokenizer knows what it says."""
    return not isinstance(prompt, ChatPrompt) and not all(isinstance(item, str) for item in _items(prompt))


def texts(prompt: AnyPrompt, spell: Spell) -> list[str]:
    """Every text, in an order that `with_texts` knows."""
    if isinstance(prompt, ChatPrompt):
        return [text for each in prompt.messages for text in (each.content, each.name or "", each.role)]
    return [_spelled(item, spell) for item in _lists(_items(prompt))]


def with_texts(prompt: AnyPrompt, now: Sequence[str], before: Sequence[str]) -> AnyPrompt:
    """The prompt with these texts; what is as it was before stays as it was given, token ids included."""
    if isinstance(prompt, ChatPrompt):
        told = zip(prompt.messages, now[::3], now[1::3], now[2::3], strict=True)
        messages = tuple(
            msgspec.structs.replace(message, content=content, name=name or message.name, role=role)
            for message, content, name, role in told
        )
        return msgspec.structs.replace(prompt, messages=messages)
    given = _lists(_items(prompt))
    items = tuple(item if new == old else new for item, new, old in zip(given, now, before, strict=True))
    if isinstance(prompt, CompletionPrompt):
        return msgspec.structs.replace(prompt, prompt=items)
    return msgspec.structs.replace(prompt, input=items)


def _items(prompt: AnyPrompt) -> tuple[Item, ...]:
    assert not isinstance(prompt, ChatPrompt)
    given = prompt.prompt if isinstance(prompt, CompletionPrompt) else prompt.input
    return (given,) if isinstance(given, str) else given


def _lists(items: tuple[Item, ...]) -> list[str | tuple[int, ...]]:
    """One item for each prompt: bare token ids are one prompt."""
    ids = tuple(item for item in items if isinstance(item, int))
    rest = [item for item in items if not isinstance(item, int)]
    return [*rest, ids] if ids else rest


def _spelled(item: str | tuple[int, ...], spell: Spell) -> str:
    return item if isinstance(item, str) else spell(item)
