"""/v1/admin/cache: the prefix caches of all workers, as they are, to clear and to fill beforehand."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery
from msgspec import Meta

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.wire.policies import CacheOrders, WarmPrefix
from inferflux.broker.wire.requests import Message
from inferflux.registry.cache import CacheStore
from inferflux.registry.fleet import Fleet

from ..auth import principal_of, usable_model
from ..gateway import Gateway
from .tenants import TenantName, checked_name

Text = Annotated[str, Meta(min_length=1, max_length=131072)]


class WarmMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of text that conversations begin with."""

    role: Annotated[str, Meta(min_length=1, max_length=32)]
    content: Text


class WarmRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How prompts begin: the text of `prompt`, or the first messages of chats. `tenant` is whose prompts; the key's own
    where it is left out, because no tenant may profit from what was computed for another."""

    model: Annotated[str, Meta(max_length=200)] | None = None
    prompt: Text | None = None
    messages: Annotated[tuple[WarmMessage, ...], Meta(max_length=64)] = ()
    tenant: TenantName | None = None


class WorkerCache(msgspec.Struct, frozen=True, kw_only=True):
    """One model's cache on one worker. Pages that are used count as cached only once nobody holds them; queries and
    hits are prompt tokens since the engine started."""

    worker: str
    model: str
    num_pages: int
    num_pages_used: int
    num_pages_cached: int
    prefix_queries: int
    prefix_hits: int
    warm: tuple[str, ...]


class WarmAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A prefix that workers keep warm, without its text. `at` is Unix time; `num_workers` have computed it."""

    id: str
    model: str
    tenant: str
    num_chars: int
    at: float
    num_workers: int


class CacheAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Every cache, and what operators want them to hold."""

    workers: list[WorkerCache]
    warm: list[WarmAnswer]
    dry_run: bool = False


@get("/cache", opt={"scope": "admin"})
async def get_cache(cache_store: NamedDependency[CacheStore], fleet: NamedDependency[Fleet]) -> Response[bytes]:
    """Every model's cache on every worker."""
    return _respond(await cache_store.read(), fleet)


@delete("/cache", status_code=200, opt={"scope": "admin"})
async def clear_cache(
    cache_store: NamedDependency[CacheStore],
    fleet: NamedDependency[Fleet],
    gateway: NamedDependency[Gateway],
    model: FromQuery[str | None] = None,
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Have all workers forget every prefix of one model, or of all: in memory and in files."""
    models = [entry.id for entry in gateway.models]
    if model is not None:
        entry = gateway.models.resolve(model)
        if entry is None:
            raise RequestError(Code.MODEL_NOT_FOUND, f"the model {model[:200]!r} does not exist", param="model")
        models = [entry.id]
    return _respond(await cache_store.clear(models, dry_run=dry_run), fleet, dry_run=dry_run)


@post("/cache/warm", status_code=200, opt={"scope": "admin"})
async def warm_cache(
    request: Request[Any, Any, Any],
    cache_store: NamedDependency[CacheStore],
    fleet: NamedDependency[Fleet],
    gateway: NamedDependency[Gateway],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Have every worker of a model compute how prompts begin, now and whenever its engine starts."""
    wanted = await gateway.parse(request, WarmRequest)
    if (wanted.prompt is None) == (not wanted.messages):
        raise RequestError(Code.INVALID_REQUEST, "give either 'prompt' or 'messages'", param="prompt")
    principal = principal_of(request)
    entry = usable_model(gateway.models, wanted.model, principal)
    prefix = WarmPrefix(
        id="",
        model=entry.id,
        tenant=principal.tenant.id if wanted.tenant is None else checked_name(wanted.tenant),
        prompt=wanted.prompt,
        messages=tuple(Message(role=each.role, content=each.content) for each in wanted.messages),
    )
    return _respond(await cache_store.warm(prefix, dry_run=dry_run), fleet, dry_run=dry_run)


CACHE_ROUTES = [get_cache, clear_cache, warm_cache]


def _respond(orders: CacheOrders, fleet: Fleet, *, dry_run: bool = False) -> Response[bytes]:
    workers = [
        WorkerCache(
            worker=worker.worker,
            model=beat.id,
            num_pages=beat.num_pages,
            num_pages_used=beat.num_pages_used,
            num_pages_cached=beat.num_pages_cached,
            prefix_queries=beat.prefix_queries,
            prefix_hits=beat.prefix_hits,
            warm=beat.warm,
        )
        for worker in fleet.workers()
        for beat in worker.models
        if beat.state in ("ready", "unloading")
    ]
    warm = [
        WarmAnswer(
            id=each.id,
            model=each.model,
            tenant=each.tenant,
            num_chars=len(each.prompt or "") + sum(len(message.content) for message in each.messages),
            at=each.at,
            num_workers=sum(each.id in cache.warm for cache in workers),
        )
        for each in orders.warm
    ]
    body = msgspec.json.encode(CacheAnswer(workers=workers, warm=warm, dry_run=dry_run))
    return Response(body, media_type="application/json")
