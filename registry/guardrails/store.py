"""Guardrails that change while the fleet runs: one document in KV, which wins over the settings."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.wire.policies import Guardrails, GuardrailSet
from inferflux.config.logs import get_logger
from inferflux.config.settings import GuardrailSettings

from ..store import PolicyStore
from .guard import guardrails_document
from .policy import Policy, problem

log = get_logger("registry.guardrails")


class GuardrailChange(msgspec.Struct, frozen=True, kw_only=True):
    """What shall change: the whole list, or names that come and go, and sets (None: as the settings have it)."""

    active: tuple[str, ...] | None = None
    gives_back: bool = False
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    sets: Mapping[str, GuardrailSet | None] = {}

    def apply(self, now: Guardrails, settings: GuardrailSettings) -> Guardrails:
        """The document afterwards."""
        active = now.active if self.active is None else self.active
        if self.gives_back:
            active = None
        if self.add or self.remove:
            base = settings.blocklist if active is None else active
            active = tuple(name for name in (*base, *self.add) if name not in self.remove)
        named = {name: each for name, each in {**now.sets, **self.sets}.items() if each is not None}
        return Guardrails(active=None if active is None else tuple(dict.fromkeys(active)), sets=named)


class GuardrailStore:
    """Reads and changes the document. Every call may raise BrokerError."""

    def __init__(self, store: PolicyStore, settings: GuardrailSettings) -> None:
        self._document = guardrails_document(store)
        self._settings = settings

    def policy(self, changed: Guardrails) -> Policy:
        """What is in force under this document."""
        return Policy(self._settings, changed)

    async def read(self) -> Guardrails:
        return (await self._document.read())[0]

    async def change(self, change: GuardrailChange, *, dry_run: bool = False) -> Guardrails:
        """The document afterwards; a dry run stores nothing. Raises RequestError for what makes no sense."""

        def checked(now: Guardrails) -> Guardrails:
            wanted = change.apply(now, self._settings)
            policy = self.policy(wanted)
            wrong = problem(policy.active, policy.sets)
            if wrong is not None:
                raise RequestError(Code.INVALID_REQUEST, wrong, param="sets" if change.sets else "active")
            return wanted

        if dry_run:
            return checked(await self.read())
        wanted = await self._document.change(checked)
        log.info("guardrails changed", num_active=None if wanted.active is None else len(wanted.active))
        return wanted
