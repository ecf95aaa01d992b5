"""GET /v1/admin/usage: what each tenant, key and model was served."""

from __future__ import annotations

import time
from datetime import date

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from inferflux.broker.errors import Code, RequestError
from inferflux.registry.limits import LimitStore, tenant_limit
from inferflux.registry.quota import month
from inferflux.registry.usage import Period, UsageBook, UsageRow, total

_PERIODS: tuple[Period, ...] = ("day", "month")


class BudgetAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """This month's budget of one tenant; `tokens` are used up or reserved, and there is no `limit` any more when it is
    null."""

    tenant: str
    month: str
    tokens: int
    limit: int | None


class UsageAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Usage by day or month (UTC), its sums, and this month's budgets."""

    object: str = "list"
    data: list[UsageRow]
    total: dict[str, int]
    budgets: list[BudgetAnswer]


@get("/usage", opt={"scope": "admin"})
async def get_usage(
    usage_book: NamedDependency[UsageBook],
    limit_store: NamedDependency[LimitStore],
    tenant: FromQuery[str | None] = None,
    key: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
    since: FromQuery[str | None] = None,
    until: FromQuery[str | None] = None,
    by: FromQuery[str] = "day",
) -> Response[bytes]:
    """Usage of the days from `since` to `until`, of one tenant, key or model or of all."""
    for name, value in (("since", since), ("until", until)):
        if value is not None and not _is_day(value):
            raise RequestError(Code.INVALID_REQUEST, f"{name}: write a day as YYYY-MM-DD", param=name)
    period: Period | None = next((each for each in _PERIODS if each == by), None)
    if period is None:
        raise RequestError(Code.INVALID_REQUEST, "by: day or month", param="by")
    rows = await usage_book.rows(tenant=tenant, key=key, model=model, since=since, until=until, by=period)
    limits = await limit_store.read()
    budgets = [
        BudgetAnswer(
            tenant=each.tenant,
            month=each.month,
            tokens=each.tokens,
            limit=tenant_limit(limits, each.tenant).tokens_per_month,
        )
        for each in await usage_book.budgets(month(time.time()), tenant)
    ]
    answer = UsageAnswer(data=rows, total=total(rows), budgets=budgets)
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
