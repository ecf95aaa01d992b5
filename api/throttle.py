"""The throttle: counts requests against the limits of their key and tenant, and refuses what is over one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from litestar.types import HTTPResponseStartEvent
from litestar.types import Scope as Connection

from inferflux.broker.broker import Broker
from inferflux.broker.errors import RequestError
from inferflux.broker.subjects import Counter
from inferflux.config.metrics import ApiMetrics
from inferflux.registry.limits import LimitBook
from inferflux.registry.quota import (
    Reading,
    Scope,
    budget_counter,
    budget_refusal,
    headers,
    pack,
    read,
    requests_refusal,
    tokens_refusal,
)
from inferflux.registry.tenants import Principal

_HEADERS = "throttle.headers"


class Throttle:
    """Exact over all replicas, because JetStream counts. Costs nothing where nothing is limited, else the time of one
    round trip, and nothing again once it is known that a minute's requests are used up."""

    def __init__(self, broker: Broker, limits: LimitBook, metrics: ApiMetrics) -> None:
        self._broker = broker
        self._limits = limits
        self._metrics = metrics
        self._used_up: dict[Counter, int] = {}

    async def admit(self, principal: Principal, connection: Connection) -> None:
        """Count a request, and leave the headers for its answer. Raises RequestError, BrokerError."""
        tenant = principal.tenant.id
        scopes, budget = self._limits.scopes(tenant, principal.key_id), self._limits.budget(tenant)
        if not scopes and budget is None:
            return
        now_s = time.time()
        self._refuse_used_up(scopes, connection, now_s)
        counting = [self._broker.count(scope.counter(now_s), pack(1, 0)) for scope in scopes]
        spent = [] if budget is None else [self._broker.counted(budget_counter(tenant, now_s))]
        values = await asyncio.gather(*counting, *spent)
        readings = [read(scope, value or 0) for scope, value in zip(scopes, values, strict=False)]
        connection["state"][_HEADERS] = headers(readings, now_s)
        error = _refusal(readings, now_s)
        if error is None and budget is not None and (values[-1] or 0) >= budget:
            error = budget_refusal(budget, now_s)
        if error is not None:
            await self._refused(readings, error, now_s)
            raise error

    def _refuse_used_up(self, scopes: Sequence[Scope], connection: Connection, now_s: float) -> None:
        for scope in scopes:
            limit = self._used_up.get(scope.counter(now_s))
            if limit is not None and limit == scope.limit.requests_per_minute:
                connection["state"][_HEADERS] = headers([Reading(scope, limit, 0)], now_s)
                error = requests_refusal(scope, now_s)
                self._metrics.limit_refusals.labels(error.code.value).inc()
                raise error

    async def _refused(self, readings: Sequence[Reading], error: RequestError, now_s: float) -> None:
        """A refused request uses up nothing but of the limit that refused it."""
        self._metrics.limit_refusals.labels(error.code.value).inc()
        if not readings:
            return
        over = {each.scope.counter(now_s): each for each in readings if _is_over(each)}
        if self._used_up and next(iter(self._used_up)).parts[2:] != readings[0].scope.counter(now_s).parts[2:]:
            self._used_up.clear()
        for counter, reading in over.items():
            assert reading.scope.limit.requests_per_minute is not None
            self._used_up[counter] = reading.scope.limit.requests_per_minute
        others = [each.scope.counter(now_s) for each in readings if each.scope.counter(now_s) not in over]
        await asyncio.gather(*(self._broker.count(counter, pack(-1, 0)) for counter in others))


def add_headers(message: HTTPResponseStartEvent, connection: Connection) -> None:
    """Tell what is left, on answers and on refusals alike."""
    left: dict[str, str] | None = connection["state"].get(_HEADERS)
    if left:
        message["headers"] = [*message["headers"], *((name.encode(), value.encode()) for name, value in left.items())]


def _is_over(reading: Reading) -> bool:
    limit = reading.scope.limit.requests_per_minute
    return limit is not None and reading.num_requests > limit


def _refusal(readings: Sequence[Reading], now_s: float) -> RequestError | None:
    for reading in readings:
        if _is_over(reading):
            return requests_refusal(reading.scope, now_s)
    for reading in readings:
        limit = reading.scope.limit.tokens_per_minute
        if limit is not None and reading.num_tokens >= limit:
            return tokens_refusal(reading.scope, 1, now_s)
    return None
