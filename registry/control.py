"""Control: what one process follows of the control plane, from the day's settings to the newest entry in KV."""

from __future__ import annotations

import asyncio

from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.subjects import BUCKET_POLICY, BUCKET_REGISTRY, BUCKET_TENANTS
from inferflux.config.audit import Audit
from inferflux.config.settings import Settings

from .fairness import FairnessFollower
from .guardrails.guard import Guard
from .identities import follow_identities
from .limits import LimitBook
from .store import Follower, PolicyStore
from .tenants import Tenants


class Control:
    """One follower for each bucket; whoever wants to hear of changes registers before `start`."""

    def __init__(self, settings: Settings, store: PolicyStore, tenants: Tenants, audit: Audit | None = None) -> None:
        self.audit = audit or Audit()
        self.guard = Guard(settings.guardrails)
        self.store = store
        self.tenants = tenants
        self.policy = Follower(store, BUCKET_POLICY)
        self.registry = Follower(store, BUCKET_REGISTRY)
        self.identities = Follower(store, BUCKET_TENANTS)
        self.fairness = FairnessFollower(tenants, settings.fairness.min_share)
        self.fairness.follow(self.policy, store)
        self.guard.follow(self.policy, store)
        self.limits = LimitBook(settings.auth)
        self.limits.follow(self.policy, store)
        follow_identities(self.identities, tenants)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(follower.run()) for follower in self._followers]

    async def wait_listed(self, timeout_s: float) -> None:
        """Return once everything that is stored is in force. Raises BrokerUnavailable."""
        try:
            async with asyncio.timeout(timeout_s):
                for follower in self._followers:
                    await follower.listed.wait()
        except TimeoutError:
            raise BrokerUnavailable(
                f"models, policy and tenants could not be read within {timeout_s:g} s (broker.timeout_s)"
            ) from None

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.guard.close()

    @property
    def _followers(self) -> tuple[Follower, Follower, Follower]:
        return self.policy, self.registry, self.identities
