from __future__ import annotations

from inferflux.broker.prefix import MAX_CHARS, MIN_CHARS, prefix_digest
from inferflux.broker.wire.requests import AnyPrompt, ChatPrompt, CompletionPrompt, EmbeddingPrompt, Message


def chat(*contents: str) -> ChatPrompt:
    roles = ("system", "user", "assistant", "user", "assistant", "user")
    messages = tuple(Message(role=role, content=text) for role, text in zip(roles, contents, strict=False))
    return ChatPrompt(id="r", messages=messages)


def text(content: str) -> CompletionPrompt:
    return CompletionPrompt(id="r", prompt=content)


def same(one: AnyPrompt, other: AnyPrompt) -> bool:
    digests = [prefix_digest(each, "tenant:acme") for each in (one, other)]
    return digests[0] is not None and digests[0] == digests[1]


def test_every_turn_of_a_conversation_has_one_digest() -> None:
    first = chat("Be brief.", "Hello")
    assert same(first, chat("Be brief.", "Hello", "Hi.", "And now?"))
    assert same(first, chat("Be brief.", "Hello", "Hi.", "And now?", "Well.", "Go on"))
    assert not same(first, chat("Be brief.", "Good morning"))
    assert not same(first, chat("Be long.", "Hello"))


def test_long_texts_are_alike_by_their_beginning() -> None:
    beginning = "x" * MAX_CHARS
    assert same(text(beginning + "one"), text(beginning + "other"))
    assert not same(text("y" + beginning), text(beginning))


def test_what_shares_no_page_of_text_has_no_digest() -> None:
    assert prefix_digest(text("x" * (MIN_CHARS - 1)), "s") is None
    assert prefix_digest(CompletionPrompt(id="r", prompt=(1, 2, 3)), "s") is None
    assert prefix_digest(EmbeddingPrompt(id="r", input="x" * MAX_CHARS), "s") is None


def test_tenants_without_a_common_cache_have_nothing_in_common() -> None:
    prompt = chat("Be brief.", "Hello")
    assert prefix_digest(prompt, "tenant:acme") != prefix_digest(prompt, "tenant:other")
