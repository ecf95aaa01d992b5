"""The policy in force, and what it makes of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from inferflux.broker.errors import ConfigError
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import Lane, ServiceClass
from inferflux.broker.wire.policies import Guardrails, GuardrailSet
from inferflux.broker.wire.requests import ChatPrompt, CompletionPrompt, EmbeddingPrompt, Message
from inferflux.config.settings import GuardrailSetSettings, GuardrailSettings
from inferflux.registry.guardrails.guard import Blocked, Guard, hits
from inferflux.registry.guardrails.policy import Policy
from inferflux.registry.guardrails.store import GuardrailChange, GuardrailStore
from inferflux.registry.store import PolicyStore

LANE = Lane("m", ServiceClass.DEFAULT, "acme")
SETTINGS = GuardrailSettings(
    blocklist=("classified", "pii", "umbrella"),
    sets=(GuardrailSetSettings(name="classified", terms=("top secret",), action="redact"),),
)


def policy(settings: GuardrailSettings = SETTINGS, **changed: Any) -> Policy:
    return Policy(settings, Guardrails(**changed))


def spell(tokens: Sequence[int]) -> str:
    return " ".join({1: "top", 2: "secret", 3: "fine"}[token] for token in tokens)


def test_known_names_are_sets_and_other_words_are_terms() -> None:
    kinds = {entry.name: (entry.kind, entry.action) for entry in policy().entries()}
    assert kinds == {"classified": ("terms", "redact"), "pii": ("detectors", "block"), "umbrella": ("term", "block")}
    text = "top secret: umbrella of a@b.com"
    assert hits(policy().input, text) == [("classified", "redact"), ("blocklist", "block"), ("pii.mail", "block")]


def test_one_kind_of_data_may_be_treated_differently() -> None:
    now = policy(sets={"pii.mail": GuardrailSet(action="flag"), "pii": GuardrailSet(action="redact", stage="input")})
    text = "a@b.com 4111111111111111"
    assert hits(now.input, text) == [("pii.mail", "flag"), ("pii.card", "redact")]
    assert hits(now.output, text) == [("pii.mail", "flag")]


def test_a_stage_without_guardrails_has_no_matcher() -> None:
    assert policy(GuardrailSettings()).output is None
    only = policy(GuardrailSettings(), active=("pii",), sets={"pii": GuardrailSet(stage="input")})
    assert only.input is not None
    assert only.output is None


def test_the_revision_is_that_of_what_is_in_force() -> None:
    assert policy().revision == policy().revision != 0
    assert policy(active=SETTINGS.blocklist).revision == policy().revision
    assert policy(active=("umbrella",)).revision != policy().revision
    assert policy(sets={"pii.card": GuardrailSet(action="flag")}).revision != policy().revision
    assert policy(sets={"unused": GuardrailSet(terms=("x",))}).revision == policy().revision
    assert policy(active=()).revision == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (GuardrailSettings(sets=(GuardrailSetSettings(name="x"),)), "no terms"),
        (GuardrailSettings(sets=(GuardrailSetSettings(name="pii", terms=("x",)),)), "built in"),
        (GuardrailSettings(blocklist=("\u0301",)), "no visible character"),
        (GuardrailSettings(sets=(GuardrailSetSettings(name="x", terms=("a",)),) * 2), "twice"),
        (GuardrailSettings(opa_endpoint="opa"), "opa_endpoint"),
    ],
)
def test_settings_that_could_not_be_enforced_are_refused(settings: GuardrailSettings, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Guard(settings)


async def test_names_and_roles_of_messages_reach_the_model_too() -> None:
    guard = Guard(SETTINGS)
    for fields in ({"content": "umbrella"}, {"name": "umbrella"}, {"role": "umbrella"}):
        message = Message(**{"role": "user", "content": "x", **fields})
        with pytest.raises(Blocked):
            await guard.judge(ChatPrompt(id="r", messages=(message,)), LANE)
    fine = ChatPrompt(id="r", messages=(Message(role="user", content="the top secret"),))
    judged, revision = await guard.judge(fine, LANE)
    assert isinstance(judged, ChatPrompt)
    assert judged.messages == (Message(role="user", content="the [redacted:classified]"),)
    assert revision == guard.policy.revision


async def test_token_ids_are_read_by_who_can_spell_them() -> None:
    guard = Guard(SETTINGS)
    prompt = CompletionPrompt(id="r", prompt=("fine", (3, 1, 2)))
    assert (await guard.judge(prompt, LANE))[0] is prompt
    assert guard.must_judge(prompt, guard.policy.revision)
    judged, _ = await guard.judge(prompt, LANE, spell)
    assert isinstance(judged, CompletionPrompt)
    assert judged.prompt == ("fine", "fine [redacted:classified]")
    bare = EmbeddingPrompt(id="r", input=(3, 3))
    assert (await guard.judge(bare, LANE, spell))[0] is bare
    judged_bare, _ = await guard.judge(EmbeddingPrompt(id="r", input=(1, 2)), LANE, spell)
    assert isinstance(judged_bare, EmbeddingPrompt)
    assert judged_bare.input == ("[redacted:classified]",)


def test_only_what_nobody_judged_by_this_policy_is_judged_again() -> None:
    guard, prompt = Guard(SETTINGS), CompletionPrompt(id="r", prompt="x")
    assert guard.must_judge(prompt, None)
    assert guard.must_judge(prompt, guard.policy.revision + 1)
    assert not guard.must_judge(prompt, guard.policy.revision)
    assert not Guard(GuardrailSettings()).must_judge(prompt, None)


async def test_a_long_prompt_is_read_off_the_loop_with_the_same_result() -> None:
    guard = Guard(SETTINGS)
    with pytest.raises(Blocked):
        await guard.judge(CompletionPrompt(id="r", prompt="word " * 20_000 + "umbrella"), LANE)


async def test_changes_add_remove_and_give_back() -> None:
    store = GuardrailStore(PolicyStore(MemoryBroker(MemoryHub())), SETTINGS)

    async def change(**fields: Any) -> tuple[str, ...]:
        return store.policy(await store.change(GuardrailChange(**fields))).active

    assert await change(add=("rain",)) == ("classified", "pii", "umbrella", "rain")
    assert await change(remove=("pii", "umbrella")) == ("classified", "rain")
    assert await change(active=("rain", "rain")) == ("rain",)
    assert await change(active=()) == ()
    assert await change(gives_back=True) == SETTINGS.blocklist
    assert (await store.read()).active is None
