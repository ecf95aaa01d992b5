"""Usage: what each tenant, key and model was served by the day. Workers count, each request once."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

import msgspec

from inferflux.broker.broker import Broker
from inferflux.broker.subjects import Counter, Series
from inferflux.broker.wire.requests import Usage

from .quota import day, name_of, pack, unpack

Period = Literal["day", "month"]

_PERIOD_LENGTH = {"day": len("2026-11-22"), "month": len("2026-11")}


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one model computed for one key in one day or month (UTC); `key` is `-` for what came without one.
    `cached_tokens` are those of `prompt_tokens` that the prefix cache held."""

    tenant: str
    key: str
    model: str
    period: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


def usage_counter(tenant: str, key: str | None, model: str, now_s: float) -> Counter:
    """Where a request counts that came at `now_s` (Unix time)."""
    return Counter(Series.USAGE, (name_of(tenant), name_of(key or ""), name_of(model), day(now_s)))


def usage_amount(usage: Usage) -> int:
    """One request as a number that counters can add."""
    return pack(1, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's tokens of one month: `tokens` are used up, those included that requests under way have reserved."""

    tenant: str
    month: str
    tokens: int


class UsageBook:
    """Reads what was counted. Every call may raise BrokerError."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def rows(
        self,
        *,
        tenant: str | None = None,
        key: str | None = None,
        model: str | None = None,
        since: str | None = None,
        until: str | None = None,
        by: Period = "day",
    ) -> list[UsageRow]:
        """In order of time, of the days from `since` to `until`, both included."""
        wanted = tuple(None if part is None else name_of(part) for part in (tenant, key, model))
        sums: defaultdict[tuple[str, ...], int] = defaultdict(int)
        for counter, value in (await self._broker.counters(Series.USAGE, (*wanted, None))).items():
            *names, date = counter.parts
            if (since is None or date >= since) and (until is None or date <= until):
                sums[(date[: _PERIOD_LENGTH[by]], *names)] += value
        return [_row(names, value) for names, value in sorted(sums.items())]

    async def budgets(self, of_month: str, tenant: str | None = None) -> list[Budget]:
        """Of every tenant that has a budget and has used some of it."""
        wanted = None if tenant is None else name_of(tenant)
        found = await self._broker.counters(Series.BUDGET, (wanted, of_month))
        return [
            Budget(tenant=counter.parts[0], month=of_month, tokens=value) for counter, value in sorted(found.items())
        ]


def total(rows: list[UsageRow]) -> dict[str, int]:
    """The sums over all rows."""
    names = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    return {name: sum(getattr(row, name) for row in rows) for name in names}


def _row(names: tuple[str, ...], value: int) -> UsageRow:
    period, tenant, key, model = names
    requests, prompt, cached, completion = unpack(value, 4)
    return UsageRow(
        tenant=tenant,
        key=key,
        model=model,
        period=period,
        requests=requests,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
    )
