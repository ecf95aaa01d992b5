"""`inferctl admin rate-limit`, `usage` and the dry run of `fairness` against a scripted server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness.http import Answer, Asked

LIMITS = {
    "key": {"requests_per_minute": 60, "tokens_per_minute": None},
    "tenant": {"requests_per_minute": None, "tokens_per_minute": None, "tokens_per_month": None},
    "keys": {"k1": {"requests_per_minute": 5, "tokens_per_minute": None}},
    "tenants": {"ac[red]me": {"requests_per_minute": 1, "tokens_per_minute": 2, "tokens_per_month": 3}},
    "changed": {},
    "dry_run": False,
}
ROW = {
    "period": "2026-11-22",
    "tenant": "acme",
    "key": "-",
    "model": "m",
    "requests": 2,
    "prompt_tokens": 20,
    "cached_tokens": 5,
    "completion_tokens": 7,
}
USAGE = {
    "data": [ROW],
    "total": {name: ROW[name] for name in ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")},
    "budgets": [{"tenant": "acme", "month": "2026-11", "tokens": 27, "limit": 100}],
}


@pytest.fixture
def calls(http_server: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    asked: list[tuple[str, str, Any]] = []

    def answer(call: Asked) -> Answer:
        asked.append((call.method, call.path, call.json if call.body else None))
        path = call.path.partition("?")[0]
        if path == "/v1/admin/fairness":
            return Answer(body={"weights": {"a": 4.0}, "min_share": {}, "changed": {"weights": {}, "min_share": {}}})
        return Answer(body=USAGE if path == "/v1/admin/usage" else LIMITS)

    monkeypatch.setenv("INFERCTL_URL", http_server(answer).url)
    return asked


def words(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


@pytest.mark.parametrize("arguments", [[], ["--get"]])
def test_limits_are_shown(inferctl: Any, calls: Any, arguments: list[str]) -> None:
    shown = words(inferctl("admin", "rate-limit", *arguments).out)
    assert ["key", "every", "other", "60", "-", "-"] in shown
    assert ["key", "k1", "5", "-", "-"] in shown
    assert ["tenant", "ac[red]me", "1", "2", "3"] in shown
    assert calls == [("GET", "/v1/admin/rate_limit", None)]
    assert json.loads(inferctl("admin", "rate_limit", *arguments, "--json").out) == LIMITS


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["--set", "60"], {"key": {"requests_per_minute": 60}}),
        (["--set", "default"], {"key": {"requests_per_minute": None}}),
        (["--set", "tokens_per_minute=0", "--set", "5"], {"key": {"tokens_per_minute": 0, "requests_per_minute": 5}}),
        (["--key", "k1", "--set", "requests-per-minute=7"], {"keys": {"k1": {"requests_per_minute": 7}}}),
        (["--tenant", "a=b", "--set", "tokens_per_month=9"], {"tenants": {"a=b": {"tokens_per_month": 9}}}),
        (["--every-tenant", "--set", "9"], {"tenant": {"requests_per_minute": 9}}),
    ],
)
def test_limits_are_set(inferctl: Any, calls: Any, arguments: list[str], body: Any) -> None:
    assert inferctl("admin", "rate-limit", *arguments).status == 0
    assert calls == [("PUT", "/v1/admin/rate_limit", body)]


def test_dry_runs_say_so(inferctl: Any, calls: Any) -> None:
    result = inferctl("admin", "rate-limit", "--set", "60", "--dry-run")
    assert (result.status, result.err) == (0, "dry run: nothing was changed\n")
    assert inferctl("admin", "fairness", "--set-weight", "a=4", "--dry-run").status == 0
    assert [path for _, path, _ in calls] == ["/v1/admin/rate_limit?dry_run=true", "/v1/admin/fairness?dry_run=true"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "-1"],
        ["--set", "many"],
        ["--set", "tokens_per_month=5"],
        ["--set", "tokens_per_year=5", "--tenant", "a"],
        ["--get", "--set", "5"],
        ["--key", "k1"],
        ["--dry-run"],
        ["--key", "k1", "--tenant", "a", "--set", "5"],
    ],
)
def test_unclear_limits_are_refused(inferctl: Any, calls: Any, arguments: list[str]) -> None:
    assert inferctl("admin", "rate-limit", *arguments).status == 2
    assert calls == []


def test_usage_is_shown_and_filtered(inferctl: Any, calls: Any) -> None:
    result = inferctl("admin", "usage", "--tenant", "a b", "--model", "org/m", "--since", "2026-11-01", "--by", "month")
    assert ["2026-11-22", "acme", "-", "m", "2", "20", "5", "7"] in words(result.out)
    assert ["total", "2", "20", "5", "7"] in words(result.out)
    assert "acme in 2026-11: 27 tokens of 100" in result.out
    query = "tenant=a+b&model=org%2Fm&since=2026-11-01&by=month"
    assert calls == [("GET", f"/v1/admin/usage?{query}", None)]
    assert json.loads(inferctl("admin", "usage", "--json").out) == USAGE
