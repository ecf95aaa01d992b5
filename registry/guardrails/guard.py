"""The guard: judges prompts by the policy in force, and holds the matcher that answers are read by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.subjects import BUCKET_POLICY, KEY_GUARDRAILS, Lane
from inferflux.broker.wire.policies import GuardrailAction, Guardrails
from inferflux.broker.wire.requests import AnyPrompt, ChatPrompt, CompletionPrompt, Generation
from inferflux.config.audit import Audit
from inferflux.config.logs import get_logger
from inferflux.config.settings import GuardrailSettings

from ..store import Document, Follower, PolicyStore
from .matcher import Matcher, redacted
from .opa import Opa, OpaUnavailable
from .policy import Policy, check_guardrails
from .prompt_texts import Spell, has_token_ids, texts, with_texts
from .rule import Rule

log = get_logger("registry.guardrails")

OPA = "opa"
INLINE_CHARS = 32_768
"""Longer prompts are read on another thread."""


class Blocked(RequestError):
    """A guardrail refused a prompt. `texts` is what it said, for those who may know."""

    def __init__(self, guardrail: str, message: str, texts: Sequence[str], param: str) -> None:
        super().__init__(Code.CONTENT_FILTER, message, param=param)
        self.guardrail = guardrail
        self.texts = tuple(texts)


def _nothing(_: str, __: str, ___: str) -> None:
    """Counts nothing."""


def guardrails_document(store: PolicyStore) -> Document[Guardrails]:
    return Document(store, BUCKET_POLICY, KEY_GUARDRAILS, Guardrails())


class Guard:
    """`policy` is what is in force. `on_hit` is told stage, guardrail and action of everything that is found."""

    def __init__(self, settings: GuardrailSettings, opa: Opa | None = None) -> None:
        """Raises ConfigError."""
        check_guardrails(settings)
        self.policy = Policy(settings, Guardrails())
        self.on_hit: Callable[[str, str, str], None] = _nothing
        self._settings = settings
        self._opa = opa or (Opa(settings) if settings.opa_endpoint is not None else None)

    @property
    def output(self) -> Matcher | None:
        """What answers are read by; None while no guardrail looks at them."""
        return self.policy.output

    def follow(self, follower: Follower, store: PolicyStore) -> None:
        follower.follow(guardrails_document(store), self._apply)

    def must_judge(self, prompt: AnyPrompt, revision: int | None) -> bool:
        """Whether a prompt has to be judged that was judged under a policy (None: not at all)."""
        policy = self.policy
        return policy.judges_prompts and (revision != policy.revision or has_token_ids(prompt))

    async def judge(self, prompt: AnyPrompt, lane: Lane, spell: Spell | None = None) -> tuple[AnyPrompt, int]:
        """The prompt as it may be published, and the revision of the policy that allowed it.

        Token ids can be read with `spell` only; without it they are left to whoever has it. Raises Blocked, and
        RequestError where OPA cannot be asked.
        """
        policy = self.policy
        if not policy.judges_prompts or (spell is None and has_token_ids(prompt)):
            return prompt, policy.revision
        said = texts(prompt, spell or _unspelled)
        if policy.input is not None:
            prompt, said = await self._read(policy.input, prompt, said)
        if self._opa is not None:
            await self._ask(self._opa, prompt, said, lane)
        return prompt, policy.revision

    async def close(self) -> None:
        if self._opa is not None:
            await self._opa.close()

    async def _read(self, matcher: Matcher, prompt: AnyPrompt, said: list[str]) -> tuple[AnyPrompt, list[str]]:
        def find() -> list[tuple[str, list[Rule]]]:
            found = [(text, matcher.find(text)) for text in said]
            return [(redacted(text, hits), [hit.rule for hit in hits]) for text, hits in found]

        inline = sum(map(len, said)) <= INLINE_CHARS
        found = find() if inline else await asyncio.to_thread(find)
        rules = [rule for _, each in found for rule in each]
        for rule in rules:
            self.on_hit("input", rule.guardrail, rule.action)
        for rule in rules:
            if rule.action == "block":
                raise Blocked(
                    rule.guardrail, f"the prompt was refused by the guardrail {rule.guardrail!r}", said, _param(prompt)
                )
        now = [text for text, _ in found]
        return (with_texts(prompt, now, said) if now != said else prompt), now

    async def _ask(self, opa: Opa, prompt: AnyPrompt, said: list[str], lane: Lane) -> None:
        rule = Rule(OPA, "block")
        try:
            decision = await opa.decide(_opa_input(prompt, said, lane))
        except OpaUnavailable as error:
            log.warning("OPA gave no decision", fails_open=self._settings.opa_fail_open, reason=str(error))
            if self._settings.opa_fail_open:
                return
            self.on_hit("input", rule.guardrail, rule.action)
            raise RequestError(
                Code.GUARDRAIL_UNAVAILABLE,
                "the guardrail 'opa' cannot be asked now; try again later",
                retry_after_s=5.0,
            ) from None
        if not decision.allow:
            self.on_hit("input", rule.guardrail, rule.action)
            why = f": {decision.reason}" if decision.reason else ""
            raise Blocked(OPA, f"the prompt was refused by the guardrail 'opa'{why}", said, _param(prompt))

    def _apply(self, changed: Guardrails) -> None:
        self.policy = Policy(self._settings, changed)
        log.info("guardrails applied", revision=self.policy.revision, num_active=len(self.policy.active))


def told(error: RequestError, audit: Audit) -> dict[str, object]:
    """What the audit log says of a refusal."""
    detail: dict[str, object] = {"code": error.code.value, "reason": error.message}
    if isinstance(error, Blocked):
        detail["guardrail"] = error.guardrail
        if audit.keeps_prompts:
            detail["prompt"] = list(error.texts)
    return detail


def hits(matcher: Matcher | None, text: str) -> list[tuple[str, GuardrailAction]]:
    """Guardrails that find something in a text, each once with what it does."""
    if matcher is None:
        return []
    return list(dict.fromkeys((hit.rule.guardrail, hit.rule.action) for hit in matcher.find(text)))


def _opa_input(prompt: AnyPrompt, said: list[str], lane: Lane) -> dict[str, Any]:
    given: dict[str, Any] = {
        "tenant": lane.tenant,
        "model": lane.model,
        "service_class": lane.service_class.value,
        "kind": type(prompt).__struct_config__.tag,
        "texts": said,
    }
    if isinstance(prompt, ChatPrompt):
        given["texts"] = [each.content for each in prompt.messages]
        given["messages"] = [{"role": each.role, "content": each.content} for each in prompt.messages]
    if isinstance(prompt, Generation):
        given |= {"max_tokens": prompt.max_tokens, "n": prompt.n}
    return given


def _param(prompt: AnyPrompt) -> str:
    if isinstance(prompt, ChatPrompt):
        return "messages"
    return "prompt" if isinstance(prompt, CompletionPrompt) else "input"


def _unspelled(_: Sequence[int]) -> str:
    return ""
