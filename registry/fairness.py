"""Weights and class shares that change while the fleet runs: one entry in KV, which wins over the settings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Literal, TypeVar, cast

import msgspec

from inferflux.broker.broker import Broker, Entry
from inferflux.broker.errors import BrokerUnavailable, RevisionConflict
from inferflux.broker.subjects import BUCKET_POLICY, KEY_FAIRNESS
from inferflux.broker.wire import Fairness, decode_fairness, encode
from inferflux.config.logs import get_logger
from inferflux.config.settings import MinShareSettings

from .tenants import Tenants

log = get_logger("registry.fairness")

RETRY_S = 0.5
MAX_RACES = 20

ShareName = Literal["default", "batch"]
Name = TypeVar("Name", bound=str)


class FairnessStore:
    """Reads and changes the entry. Every call may raise BrokerError."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def read(self) -> Fairness:
        return (await self._read())[0]

    async def change(
        self, weights: Mapping[str, float | None], min_share: Mapping[ShareName, float | None]
    ) -> Fairness:
        """Set what is named, leave the rest; None gives a value back to the settings."""
        bucket = await self._broker.bucket(BUCKET_POLICY)
        for _ in range(MAX_RACES):
            now, revision = await self._read()
            wanted = Fairness(
                weights=_merged(now.weights, weights),
                min_share=_merged(now.min_share, min_share),
            )
            try:
                if revision:
                    await bucket.update(KEY_FAIRNESS, encode(wanted), revision)
                else:
                    await bucket.create(KEY_FAIRNESS, encode(wanted))
            except RevisionConflict:
                continue
            log.info("fairness changed", weights=_listed(weights), min_share=_listed(min_share))
            return wanted
        raise BrokerUnavailable("others change the fairness all the time; try again")

    async def _read(self) -> tuple[Fairness, int]:
        entry = await (await self._broker.bucket(BUCKET_POLICY)).get(KEY_FAIRNESS)
        if entry is None or entry.value is None:
            return Fairness(), 0
        try:
            return decode_fairness(entry.value), entry.revision
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("fairness not understood", reason=str(error))
            return Fairness(), entry.revision


class FairnessFollower:
    """Carries every change into a process's tenants, and into whoever asked for the shares."""

    def __init__(self, broker: Broker, tenants: Tenants, settings: MinShareSettings) -> None:
        self._broker = broker
        self._tenants = tenants
        self._settings = settings
        self._shares = settings
        self._listeners: list[Callable[[MinShareSettings], None]] = []

    def share_with(self, set_shares: Callable[[MinShareSettings], None]) -> None:
        """Call `set_shares` now and after every change."""
        self._listeners.append(set_shares)
        set_shares(self._shares)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self._follow()
            except BrokerUnavailable as error:
                log.warning("fairness not watched", reason=str(error))
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        watch = cast("AsyncGenerator[Entry | None]", (await self._broker.bucket(BUCKET_POLICY)).watch())
        async with contextlib.aclosing(watch) as entries:
            async for entry in entries:
                if entry is None or entry.key != KEY_FAIRNESS:
                    continue
                try:
                    self._apply(Fairness() if entry.value is None else decode_fairness(entry.value))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    log.warning("fairness not understood", reason=str(error))

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
