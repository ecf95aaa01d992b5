"""The policy: which guardrails are in force, compiled from the settings and what operators changed since."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache

import msgspec

from inferflux.broker.wire.policies import GuardrailAction, Guardrails, GuardrailSet, GuardrailStage
from inferflux.config.errors import ConfigError
from inferflux.config.settings import GuardrailSettings

from .folding import fold
from .matcher import Matcher
from .opa import endpoint
from .pii import DETECTORS, Detector
from .rule import Finder, Rule, stronger
from .terms import Terms

BLOCKLIST = "blocklist"
"""What terms belong to that are in no set."""

PII = "pii"
BUILT_IN: dict[str, tuple[str, ...]] = {PII: tuple(DETECTORS), **{name: (name,) for name in DETECTORS}}
"""Sets that need no terms, and the detectors in each."""

_PLAIN = GuardrailSet()


class Entry(msgspec.Struct, frozen=True):
    """One guardrail in force. `kind` is `detectors`, `terms` or, for a term in no set, `term`."""

    name: str
    kind: str
    action: GuardrailAction
    stage: GuardrailStage
    num_terms: int = 0


class Policy:
    """What is in force. `revision` is the same wherever the same is in force, and 0 where nothing is.

    A stage without guardrails has no matcher.
    """

    def __init__(self, settings: GuardrailSettings, changed: Guardrails) -> None:
        self.active = settings.blocklist if changed.active is None else changed.active
        self.sets = sets(settings) | changed.sets
        self.opa_endpoint = settings.opa_endpoint
        self.revision = self._revision()
        self.input = self._matcher("input")
        self.output = self._matcher("output")

    @property
    def judges_prompts(self) -> bool:
        return self.input is not None or self.opa_endpoint is not None

    def entries(self) -> Iterator[Entry]:
        """Every guardrail in force, in the order in which they were named."""
        for name in self.active:
            rules = self.sets.get(name, _PLAIN)
            if name in BUILT_IN:
                yield Entry(name, "detectors", rules.action, rules.stage)
            elif name in self.sets:
                yield Entry(name, "terms", rules.action, rules.stage, len(rules.terms))
            else:
                yield Entry(name, "term", rules.action, rules.stage, 1)

    def _matcher(self, stage: GuardrailStage) -> Matcher | None:
        terms: dict[str, Rule] = {}
        detectors: dict[str, Rule] = {}
        for name in self.active:
            rules = self.sets.get(name, _PLAIN)
            if name in BUILT_IN:
                self._detectors(name, stage, detectors)
            elif rules.stage in ("both", stage):
                rule = Rule(name if name in self.sets else BLOCKLIST, rules.action)
                for term in rules.terms if name in self.sets else (name,):
                    if folded := fold(term).strip():
                        terms[folded] = stronger(terms.get(folded), rule)
        finders: list[Finder] = [Terms(terms)] if terms else []
        finders += (each for name, rule in detectors.items() for each in _made(name, rule))
        return Matcher(finders) if finders else None

    def _detectors(self, name: str, stage: GuardrailStage, found: dict[str, Rule]) -> None:
        for detector in BUILT_IN[name]:
            # What was said of one kind of data wins over what was said of all.
            rules = self.sets.get(detector) or self.sets.get(name) or _PLAIN
            if rules.stage in ("both", stage):
                found[detector] = stronger(found.get(detector), Rule(detector, rules.action))

    def _revision(self) -> int:
        if not self.active and self.opa_endpoint is None:
            return 0
        # A built-in set may be changed by what is said of its parts.
        parts = {part for name in self.active for part in (name, *BUILT_IN.get(name, ()))}
        said = [(part, self.sets[part]) for part in sorted(parts) if part in self.sets]
        digest = hashlib.sha256(msgspec.json.encode((sorted(self.active), said, self.opa_endpoint))).digest()
        return int.from_bytes(digest[:6], "big") or 1


def sets(settings: GuardrailSettings) -> dict[str, GuardrailSet]:
    """The sets of the settings by name."""
    return {each.name: GuardrailSet(terms=each.terms, action=each.action, stage=each.stage) for each in settings.sets}


def problem(active: tuple[str, ...], named: Mapping[str, GuardrailSet]) -> str | None:
    """What is wrong with guardrails that somebody wants, in words."""
    for name, each in named.items():
        if each.terms and name in BUILT_IN:
            return f"the set {name!r} is built in and takes no terms: give it an action, or the terms another name"
        if not each.terms and name not in BUILT_IN:
            return f"the set {name!r} has no terms; built in are {', '.join(BUILT_IN)}"
    terms = [(each, f"the set {name!r}") for name, rules in named.items() for each in rules.terms]
    terms += [(name, "the blocklist") for name in active if name not in named and name not in BUILT_IN]
    for term, where in terms:
        if not fold(term).strip():
            return f"a term of {where} has no visible character"
    return None


def check_guardrails(settings: GuardrailSettings) -> None:
    """Raises ConfigError for guardrails that could not be enforced as they are written."""
    names = [each.name for each in settings.sets]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"guardrails.sets: {min(twice)!r} is there twice; give each set one entry")
    wrong = problem(settings.blocklist, sets(settings))
    if wrong is not None:
        raise ConfigError(f"guardrails: {wrong}")
    if settings.opa_endpoint is not None:
        endpoint(settings.opa_endpoint)


@lru_cache(maxsize=64)
def _made(name: str, rule: Rule) -> tuple[Detector, ...]:
    return tuple(make(rule) for make in DETECTORS[name])
