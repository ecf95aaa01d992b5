"""Weights and class shares that change while the fleet runs: one document in KV, which wins over the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import msgspec

from inferflux.broker.subjects import BUCKET_POLICY, KEY_FAIRNESS
from inferflux.broker.wire.policies import Fairness
from inferflux.config.logs import get_logger
from inferflux.config.settings import MinShareSettings

from .store import Document, Follower, PolicyStore
from .tenants import Tenants

log = get_logger("registry.fairness")

ShareName = Literal["default", "batch"]
Name = TypeVar("Name", bound=str)


def fairness_document(store: PolicyStore) -> Document[Fairness]:
    return Document(store, BUCKET_POLICY, KEY_FAIRNESS, Fairness())


class FairnessStore:
    """Reads and changes the document. Every call may raise BrokerError."""

    def __init__(self, store: PolicyStore) -> None:
        self._document = fairness_document(store)

    async def read(self) -> Fairness:
        return (await self._document.read())[0]

    async def change(
        self,
        weights: Mapping[str, float | None],
        min_share: Mapping[ShareName, float | None],
        *,
        dry_run: bool = False,
    ) -> Fairness:
        """Set what is named, leave the rest; None gives a value back to the settings. Stored unless it is a dry run."""

        def changed(now: Fairness) -> Fairness:
            return Fairness(weights=_merged(now.weights, weights), min_share=_merged(now.min_share, min_share))

        if dry_run:
            return changed(await self.read())
        wanted = await self._document.change(changed)
        log.info("fairness changed", weights=_listed(weights), min_share=_listed(min_share))
        return wanted


class FairnessFollower:
    """Carries every change into a process's tenants, and into whoever asked for the shares."""

    def __init__(self, tenants: Tenants, settings: MinShareSettings) -> None:
        self._tenants = tenants
        self._settings = settings
        self._shares = settings
        self._listeners: list[Callable[[MinShareSettings], None]] = []

    def follow(self, follower: Follower, store: PolicyStore) -> None:
        follower.follow(fairness_document(store), self._apply)

    def share_with(self, set_shares: Callable[[MinShareSettings], None]) -> None:
        """Call `set_shares` now and after every change."""
        self._listeners.append(set_shares)
        set_shares(self._shares)

    def _apply(self, fairness: Fairness) -> None:
        self._tenants.reweigh(fairness.weights)
        self._shares = shares(self._settings, fairness)
        for set_shares in self._listeners:
            set_shares(self._shares)
        log.info("fairness applied", weights=_listed(fairness.weights), min_share=_listed(fairness.min_share))


def shares(settings: MinShareSettings, fairness: Fairness) -> MinShareSettings:
    """The class shares in force."""
    return msgspec.structs.replace(settings, **{str(name): share for name, share in fairness.min_share.items()})


def _merged(now: Mapping[Name, float], changes: Mapping[Name, float | None]) -> dict[Name, float]:
    return {name: value for name, value in {**now, **changes}.items() if value is not None}


def _listed(values: Mapping[Name, float | None] | Mapping[Name, float]) -> str:
    return ",".join(f"{name}={'-' if value is None else format(value, 'g')}" for name, value in values.items())
