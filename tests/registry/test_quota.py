"""Windows, packed counts and what is said when nothing is left."""

from __future__ import annotations

import calendar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferflux.broker.errors import Code
from inferflux.broker.subjects import counter
from inferflux.broker.wire.policies import RateLimit
from inferflux.registry import quota
from inferflux.registry.quota import Reading, Scope

COUNTS = st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=5)
NOW_S = float(calendar.timegm((2026, 2, 27, 23, 59, 50)))


def scope(kind: str = "key", **limit: int) -> Scope:
    return Scope(kind, "k", RateLimit(**limit))  # type: ignore[arg-type]


@given(st.lists(st.lists(st.integers(-(2**50), 2**50), min_size=4, max_size=4), min_size=1, max_size=20))
def test_packed_counts_add_up_like_counts(rows: list[list[int]]) -> None:
    total = sum(quota.pack(*row) for row in rows)
    assert quota.unpack(total, 4) == tuple(sum(column) for column in zip(*rows, strict=True))


@given(COUNTS)
def test_packing_loses_nothing(counts: list[int]) -> None:
    assert quota.unpack(quota.pack(*counts), len(counts)) == tuple(counts)


def test_windows_are_minutes_days_and_months_of_utc() -> None:
    counters = [scope(requests_per_minute=1).counter(NOW_S + offset) for offset in (0, 9, 10)]
    assert counters[0] == counters[1] != counters[2]
    assert (quota.day(NOW_S), quota.month(NOW_S)) == ("2026-02-27", "2026-02")
    assert quota.minute_left_s(NOW_S) == 10
    assert quota.month_left_s(NOW_S) == 86400 + 10
    assert quota.month(NOW_S + quota.month_left_s(NOW_S)) == "2026-03"
    assert quota.month(NOW_S + quota.month_left_s(NOW_S) - 1) == "2026-02"


@pytest.mark.parametrize("name", ["", "acme", "org/model:v1.5 é", "x" * 5000, "\N{GRINNING FACE}" * 60])
def test_every_name_can_be_counted(name: str) -> None:
    subject = counter(quota.budget_counter(name, NOW_S))
    assert len(subject) < 300
    assert " " not in subject


def test_headers_tell_of_the_limit_that_is_nearest_to_its_end() -> None:
    readings = [
        Reading(scope("tenant", requests_per_minute=100, tokens_per_minute=1000), 99, 10),
        Reading(scope(requests_per_minute=50), 2, 0),
    ]
    assert quota.headers(readings, NOW_S) == {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "10s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "990",
        "x-ratelimit-reset-tokens": "10s",
    }
    over = quota.headers([Reading(scope(requests_per_minute=2), 7, 0)], NOW_S)
    assert over["x-ratelimit-remaining-requests"] == "0"
    assert "x-ratelimit-limit-tokens" not in over


def test_what_can_never_fit_is_not_worth_trying_again() -> None:
    bounded = scope(tokens_per_minute=100)
    never, later = quota.tokens_refusal(bounded, 101, NOW_S), quota.tokens_refusal(bounded, 100, NOW_S)
    assert never.code is later.code is Code.RATE_LIMIT_EXCEEDED
    assert never.retry_after_s is None
    assert later.retry_after_s == 10
    assert quota.budget_refusal(5, NOW_S).code is Code.INSUFFICIENT_QUOTA
