"""/v1/admin/routing and /v1/admin/scheduler: under which names and where a model is served, and how much at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, get, put
from litestar.di import NamedDependency
from litestar.params import FromQuery
from msgspec import UNSET, Meta, UnsetType

from inferflux.broker.wire.policies import ModelChange, ModelRegistry
from inferflux.registry import amendments
from inferflux.registry.model_store import ModelStore
from inferflux.registry.models import BOUNDS, ModelEntry, entries_of

from ..gateway import Gateway
from .admin_models import Limit, ModelId


class RoutingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What shall change of a model; null gives a value back to its entry, and what is not named stays."""

    model: ModelId
    aliases: Annotated[tuple[ModelId, ...], Meta(max_length=16)] | UnsetType | None = UNSET
    hardware: Literal["any", "cpu", "gpu"] | UnsetType | None = UNSET


class RoutingAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Names and class of workers of one model; `changed` names what operators changed."""

    model: str
    aliases: tuple[str, ...]
    hardware: str
    default: bool
    changed: tuple[str, ...]


class SchedulerRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What shall change of a model's bounds; null gives one back, and what is not named stays."""

    model: ModelId
    max_batch_size: Limit | UnsetType | None = UNSET
    max_batch_tokens: Limit | UnsetType | None = UNSET
    chunked_prefill_tokens: Limit | UnsetType | None = UNSET


class SchedulerAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one model's engine steps; those that nobody set for it are this replica's settings."""

    model: str
    max_batch_size: int
    max_batch_tokens: int
    chunked_prefill_tokens: int
    changed: tuple[str, ...]


@get("/routing", opt={"scope": "admin"})
async def get_routing(model_store: NamedDependency[ModelStore]) -> Response[bytes]:
    """Names and classes of workers of every model."""
    return _routing(await model_store.read(), dry_run=False)


@put("/routing", opt={"scope": "admin"})
async def change_routing(
    request: Request[Any, Any, Any],
    model_store: NamedDependency[ModelStore],
    gateway: NamedDependency[Gateway],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Change a model's aliases, or which class of workers loads it."""
    wanted = await gateway.parse(request, RoutingRequest)
    amendment = partial(amendments.change, name=wanted.model, fields=_changes(wanted))
    return _routing(await model_store.amend(amendment, dry_run=dry_run), dry_run=dry_run)


@get("/scheduler", opt={"scope": "admin"})
async def get_scheduler(model_store: NamedDependency[ModelStore], gateway: NamedDependency[Gateway]) -> Response[bytes]:
    """Bounds of every model's engine steps."""
    return _scheduler(await model_store.read(), gateway, dry_run=False)


@put("/scheduler", opt={"scope": "admin"})
async def change_scheduler(
    request: Request[Any, Any, Any],
    model_store: NamedDependency[ModelStore],
    gateway: NamedDependency[Gateway],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Change a model's bounds: from the next step on where the engine was started for as much, else by a new engine."""
    wanted = await gateway.parse(request, SchedulerRequest)
    amendment = partial(amendments.change, name=wanted.model, fields=_changes(wanted))
    return _scheduler(await model_store.amend(amendment, dry_run=dry_run), gateway, dry_run=dry_run)


ROUTING_ROUTES = [get_routing, change_routing, get_scheduler, change_scheduler]


def _changes(wanted: msgspec.Struct) -> Mapping[str, Any]:
    fields = msgspec.structs.asdict(wanted).items()
    return {name: value for name, value in fields if name != "model" and value is not UNSET}


def _routing(registry: ModelRegistry, *, dry_run: bool) -> Response[bytes]:
    data = [
        RoutingAnswer(
            model=entry.id,
            aliases=entry.aliases,
            hardware=entry.hardware,
            default=entry.default,
            changed=_changed(registry, entry, ("aliases", "hardware")),
        )
        for entry in entries_of(registry)
    ]
    return _respond(data, dry_run=dry_run)


def _scheduler(registry: ModelRegistry, gateway: Gateway, *, dry_run: bool) -> Response[bytes]:
    settings = gateway.settings.runtime.scheduler
    data = [
        SchedulerAnswer(
            model=entry.id,
            **{name: getattr(entry, name) or getattr(settings, name) for name in BOUNDS},
            changed=_changed(registry, entry, BOUNDS),
        )
        for entry in entries_of(registry)
    ]
    return _respond(data, dry_run=dry_run)


def _changed(registry: ModelRegistry, entry: ModelEntry, names: tuple[str, ...]) -> tuple[str, ...]:
    change = registry.changes.get(entry.id, ModelChange())
    return tuple(name for name in names if getattr(change, name) is not None)


def _respond(data: list[Any], *, dry_run: bool) -> Response[bytes]:
    answer = {"object": "list", "data": data, "dry_run": dry_run}
    return Response(msgspec.json.encode(answer), media_type="application/json")
