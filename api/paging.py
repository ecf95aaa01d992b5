"""Paging, as OpenAI's lists have it: `after` an id, at most `limit` of them, in an `order`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from inferflux.broker.errors import Code, RequestError


class PageQuery(NamedTuple):
    """Which part of a list is wanted."""

    after: str | None
    limit: int


def page_query(params: Mapping[str, str], max_limit: int, default: int | None = None) -> PageQuery:
    """Raises RequestError."""
    text = params.get("limit")
    if text is None:
        return PageQuery(params.get("after"), default or max_limit)
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= limit <= max_limit:
        raise RequestError(Code.INVALID_REQUEST, f"'limit': must be 1 to {max_limit}", param="limit")
    return PageQuery(params.get("after"), limit)


def order(params: Mapping[str, str]) -> str:
    """Raises RequestError."""
    text = params.get("order", "desc")
    if text not in ("asc", "desc"):
        raise RequestError(Code.INVALID_REQUEST, "'order': must be 'asc' or 'desc'", param="order")
    return text


def behind(ids: Sequence[str], after: str | None, kind: str) -> int:
    """Where in a list of things of a kind the page after one of them begins. Raises RequestError."""
    if after is None:
        return 0
    if after not in ids:
        raise RequestError(Code.NOT_FOUND, f"'after': there is no {kind} {after[:200]!r}", param="after")
    return ids.index(after) + 1
