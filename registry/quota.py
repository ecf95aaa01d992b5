"""Quotas: windows, what one counter holds, and what to say when nothing is left. Pure; times are Unix seconds, UTC.

A counter is one number of any size, so a window's requests and tokens fit into one, and one message counts both.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from typing import Literal

import msgspec

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.subjects import Counter, Series, encode_token
from inferflux.broker.wire.policies import RateLimit

MINUTE_S = 60
NOBODY = "-"
"""Stands for the key of a request that came without one."""

_BITS = 64
_HALF, _MASK = 1 << (_BITS - 1), (1 << _BITS) - 1


class Scope(msgspec.Struct, frozen=True):
    """Who a limit is for, and what it is: None bounds nothing."""

    kind: Literal["key", "tenant"]
    id: str
    limit: RateLimit

    def counter(self, now_s: float) -> Counter:
        """Requests and tokens of the minute that `now_s` is in."""
        return Counter(Series.LIMIT, (self.kind, name_of(self.id), str(int(now_s) // MINUTE_S)))


class Reading(msgspec.Struct, frozen=True):
    """What a scope has used up in the minute."""

    scope: Scope
    num_requests: int
    num_tokens: int


def pack(*counts: int) -> int:
    """Several counts as one number; packed numbers add up like their counts."""
    return sum(count << (_BITS * place) for place, count in enumerate(counts))


def unpack(value: int, num_counts: int) -> tuple[int, ...]:
    """The counts, each of which may be negative."""
    counts = []
    for _ in range(num_counts):
        counts.append(((value + _HALF) & _MASK) - _HALF)
        value = (value - counts[-1]) >> _BITS
    return tuple(counts)


def name_of(text: str) -> str:
    """A name as a subject can carry it: what is too long goes by its digest."""
    try:
        encode_token(text or NOBODY)
    except ValueError:
        return hashlib.sha256(text.encode()).hexdigest()
    return text or NOBODY


def read(scope: Scope, value: int) -> Reading:
    """A scope's counter, understood."""
    num_requests, num_tokens = unpack(value, 2)
    return Reading(scope, num_requests, num_tokens)


def day(now_s: float) -> str:
    """Such as 2026-11-22."""
    return time.strftime("%Y-%m-%d", time.gmtime(now_s))


def month(now_s: float) -> str:
    """Such as 2026-11."""
    return day(now_s)[:7]


def budget_counter(tenant: str, now_s: float) -> Counter:
    """The tokens that a tenant has used up in a month."""
    return Counter(Series.BUDGET, (name_of(tenant), month(now_s)))


def minute_left_s(now_s: float) -> float:
    """Until the next minute begins."""
    return MINUTE_S - now_s % MINUTE_S


def month_left_s(now_s: float) -> float:
    """Until the next month begins."""
    left_s = 86400 - now_s % 86400
    while month(now_s + left_s) == month(now_s):
        left_s += 86400
    return left_s


def requests_refusal(scope: Scope, now_s: float) -> RequestError:
    """The minute's requests are used up."""
    limit = scope.limit.requests_per_minute
    return RequestError(
        Code.RATE_LIMIT_EXCEEDED,
        f"{_whose(scope)} may send {limit} requests a minute, and has; try again in {_seconds(now_s)} s",
        retry_after_s=minute_left_s(now_s),
    )


def tokens_refusal(scope: Scope, num_tokens: int, now_s: float) -> RequestError:
    """The minute's tokens are used up, or do not suffice for the `num_tokens` that a request may need."""
    limit = scope.limit.tokens_per_minute
    assert limit is not None
    if num_tokens > limit:
        return RequestError(
            Code.RATE_LIMIT_EXCEEDED,
            f"this request may use {num_tokens} tokens, prompt and max_tokens together, and {_whose(scope)} has "
            f"{limit} a minute; shorten it or ask for fewer tokens",
            param="max_tokens",
        )
    return RequestError(
        Code.RATE_LIMIT_EXCEEDED,
        f"{_whose(scope)} has {limit} tokens a minute, and what is left does not suffice; try again in "
        f"{_seconds(now_s)} s, or ask for fewer tokens",
        param="max_tokens",
        retry_after_s=minute_left_s(now_s),
    )


def budget_refusal(limit: int, now_s: float) -> RequestError:
    """The month's budget is used up, or does not suffice for what a request may need."""
    return RequestError(
        Code.INSUFFICIENT_QUOTA,
        f"the tenant has {limit} tokens a month, and what is left does not suffice; the next month begins in "
        f"{month_left_s(now_s) / 3600:.0f} h",
        retry_after_s=month_left_s(now_s),
    )


def headers(readings: Sequence[Reading], now_s: float) -> dict[str, str]:
    """What OpenAI's clients read: the limit of each kind that is nearest to its end."""
    found: dict[str, str] = {}
    kinds = (
        ("requests", [(each.scope.limit.requests_per_minute, each.num_requests) for each in readings]),
        ("tokens", [(each.scope.limit.tokens_per_minute, each.num_tokens) for each in readings]),
    )
    for kind, used in kinds:
        bounded = [(max(0, limit - num_used), limit) for limit, num_used in used if limit is not None]
        if bounded:
            left, limit = min(bounded)
            found[f"x-ratelimit-limit-{kind}"] = str(limit)
            found[f"x-ratelimit-remaining-{kind}"] = str(left)
            found[f"x-ratelimit-reset-{kind}"] = f"{_seconds(now_s)}s"
    return found


def _whose(scope: Scope) -> str:
    return "this key" if scope.kind == "key" else "the tenant"


def _seconds(now_s: float) -> int:
    return max(1, math.ceil(minute_left_s(now_s)))
