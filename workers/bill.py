"""The bill: what a request may use up, reserved before it runs, and what it did use up, settled once it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from inferflux.broker.broker import Broker, Delivery
from inferflux.broker.subjects import OWNER_TENANT, Counter, RequestKey, key_id
from inferflux.broker.wire.requests import AnyPrompt, Usage
from inferflux.registry.limits import LimitBook
from inferflux.registry.quota import Scope, budget_counter, budget_refusal, pack, read, requests_refusal, tokens_refusal
from inferflux.registry.usage import usage_amount, usage_counter

from .engine.job import Job


class _Item(msgspec.Struct, frozen=True):
    """One counter that has to carry the request: the scope whose limit it holds, or the tenant's budget."""

    name: str
    counter: Counter
    scope: Scope | None = None
    num_requests: int = 0
    takes_tokens: bool = True

    def amount(self, num_requests: int, num_tokens: int) -> int:
        if self.scope is None:
            return num_tokens
        return pack(num_requests, num_tokens if self.takes_tokens else 0)


class Bill:
    """One request's. It counts in the minute, day and month in which its prompt was stored, whenever it runs, and every
    addition has a message id made of the prompt's place in the stream: so no later attempt repeats one. A request that
    an API replica vouches for was counted there; one that a tenant published itself is counted here."""

    def __init__(
        self, broker: Broker, limits: LimitBook, key: RequestKey, delivery: Delivery, prompt: AnyPrompt | None
    ) -> None:
        self._broker = broker
        self._limits = limits
        self._lane = delivery.lane
        self._stored_s = delivery.stored_s
        self._id = f"{key_id(key)}.{delivery.seq}"
        self._is_direct = key.owner.startswith(OWNER_TENANT)
        self._api_key = None if prompt is None or self._is_direct else prompt.key
        self._items: list[_Item] = []
        self.num_reserved = 0

    @property
    def is_limited(self) -> bool:
        """Whether any limit asks for a reservation."""
        return bool(self._find_items())

    async def reserve(self, jobs: Sequence[Job], *, begun: bool) -> None:
        """Take what the jobs may use up at most. Raises RequestError when it does not fit, unless the request has begun
        already: then it is settled in the end all the same."""
        self._items = self._find_items()
        prompts = {id(job.prompt): len(job.prompt) for job in jobs}
        self.num_reserved = sum(prompts.values()) + sum(job.max_tokens for job in jobs)
        if not self._items:
            return
        values = await asyncio.gather(*(self._reserved(item) for item in self._items))
        if not begun:
            for item, value in zip(self._items, values, strict=True):
                self._check(item, value)

    async def settle(self, usage: Usage | None) -> None:
        """Count what was used up, None for nothing, and give back the rest of what was reserved."""
        num_used = 0 if usage is None else usage.prompt_tokens + usage.completion_tokens
        delta = num_used - self.num_reserved
        additions = [
            self._broker.count(item.counter, item.amount(0, delta), msg_id=f"{self._id}.{item.name}.settled")
            for item in self._items
            if delta and item.takes_tokens
        ]
        if usage is not None:
            counter = usage_counter(self._lane.tenant, self._api_key, self._lane.model, self._stored_s)
            additions.append(self._broker.count(counter, usage_amount(usage), msg_id=f"{self._id}.usage"))
        await asyncio.gather(*additions)

    def _find_items(self) -> list[_Item]:
        tenant = self._lane.tenant
        items = []
        for scope in self._limits.scopes(tenant, self._api_key):
            num_requests = int(self._is_direct and scope.limit.requests_per_minute is not None)
            takes_tokens = scope.limit.tokens_per_minute is not None
            if num_requests or takes_tokens:
                items.append(_Item(scope.kind, scope.counter(self._stored_s), scope, num_requests, takes_tokens))
        if self._limits.budget(tenant) is not None:
            items.append(_Item("budget", budget_counter(tenant, self._stored_s)))
        return items

    async def _reserved(self, item: _Item) -> int:
        """The counter's value with our part in it."""
        amount = item.amount(item.num_requests, self.num_reserved)
        value = await self._broker.count(item.counter, amount, msg_id=f"{self._id}.{item.name}.reserved")
        return await self._broker.counted(item.counter) if value is None else value

    def _check(self, item: _Item, value: int) -> None:
        if item.scope is None:
            budget = self._limits.budget(self._lane.tenant)
            if budget is not None and value > budget:
                raise budget_refusal(budget, self._stored_s)
            return
        reading, limit = read(item.scope, value), item.scope.limit
        if (
            item.num_requests
            and limit.requests_per_minute is not None
            and reading.num_requests > limit.requests_per_minute
        ):
            raise requests_refusal(item.scope, self._stored_s)
        if limit.tokens_per_minute is not None and reading.num_tokens > limit.tokens_per_minute:
            raise tokens_refusal(item.scope, self.num_reserved, self._stored_s)
