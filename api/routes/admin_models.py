"""/v1/admin/models: the registry as it is on every worker, and what is done to it while the fleet runs."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from msgspec import Meta

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.wire.policies import ModelRecord, ModelRegistry
from inferflux.registry import amendments
from inferflux.registry.fleet import Fleet
from inferflux.registry.model_store import ModelStore
from inferflux.registry.models import default_of
from inferflux.registry.poller import FileReport, RegistryPoller
from inferflux.registry.roots import ModelRoots

from ..gateway import Gateway
from ..model_states import ModelState, model_states

ModelId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$(?!\n)", max_length=128)]
Limit = Annotated[int, Meta(ge=1, le=2**31 - 1)]
RESERVED = ("default", "reload")


class LoadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model to load. `path` is under one of `registry.roots`; only the stub needs none."""

    id: ModelId
    path: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    backend: Literal["auto", "llamacpp", "torch", "stub"] = "auto"
    default: bool = False
    aliases: Annotated[tuple[ModelId, ...], Meta(max_length=16)] = ()
    hardware: Literal["any", "cpu", "gpu"] = "any"
    context_length: Limit | None = None
    max_batch_size: Limit | None = None
    max_batch_tokens: Limit | None = None
    chunked_prefill_tokens: Limit | None = None


class ModelNameRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model by id or alias."""

    id: ModelId


class DefaultRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model for requests that name none; null gives the choice back to the registry file."""

    id: ModelId | None


class DefaultAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The default in force, and what operators and the registry file say; null where there is none."""

    id: str | None
    chosen: str | None
    listed: str | None
    dry_run: bool = False


class RegistryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Every model, with its state on each worker; `file` is how this replica's registry file stands."""

    object: Literal["list"] = "list"
    data: list[ModelState]
    default: str | None
    file: FileReport
    dry_run: bool = False


@get("/models", opt={"scope": "admin"})
async def list_registry(
    model_store: NamedDependency[ModelStore], fleet: NamedDependency[Fleet], poller: NamedDependency[RegistryPoller]
) -> Response[bytes]:
    """Every model, with its state on each worker."""
    return _listed(await model_store.read(), fleet, poller)


@post("/models", status_code=200, opt={"scope": "admin"})
async def load_model(
    request: Request[Any, Any, Any],
    model_store: NamedDependency[ModelStore],
    fleet: NamedDependency[Fleet],
    poller: NamedDependency[RegistryPoller],
    gateway: NamedDependency[Gateway],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Load a model on every worker of its class; one that was loaded under this id before is replaced."""
    wanted = await gateway.parse(request, LoadRequest)
    if wanted.id in RESERVED:
        raise RequestError(Code.INVALID_REQUEST, f"{wanted.id!r} is a path of this API: use another id", param="id")
    if wanted.path is None and wanted.backend != "stub":
        raise RequestError(Code.INVALID_REQUEST, "'path' is required, but for the backend stub", param="path")
    path = None if wanted.path is None else ModelRoots(gateway.settings.registry).find(wanted.path)
    fields = {name: getattr(wanted, name) for name in ModelRecord.__struct_fields__ if hasattr(wanted, name)}
    amendment = partial(amendments.load, record=ModelRecord(**fields | {"path": path}), default=wanted.default)
    return _listed(await model_store.amend(amendment, dry_run=dry_run), fleet, poller, dry_run=dry_run)


@delete("/models/{model_id:path}", status_code=200, opt={"scope": "admin"})
async def unload_model(
    model_id: FromPath[str],
    model_store: NamedDependency[ModelStore],
    fleet: NamedDependency[Fleet],
    poller: NamedDependency[RegistryPoller],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Unload a model that was loaded here: what is queued and what runs is finished first."""
    amendment = partial(amendments.unload, name=model_id.removeprefix("/"))
    return _listed(await model_store.amend(amendment, dry_run=dry_run), fleet, poller, dry_run=dry_run)


@post("/models/reload", status_code=200, opt={"scope": "admin"})
async def reload_model(
    request: Request[Any, Any, Any],
    model_store: NamedDependency[ModelStore],
    fleet: NamedDependency[Fleet],
    poller: NamedDependency[RegistryPoller],
    gateway: NamedDependency[Gateway],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Load a model once more, after its file was replaced, or to try again what failed."""
    wanted = await gateway.parse(request, ModelNameRequest)
    amendment = partial(amendments.reload, name=wanted.id)
    return _listed(await model_store.amend(amendment, dry_run=dry_run), fleet, poller, dry_run=dry_run)


@get("/models/default", opt={"scope": "admin"})
async def get_default(model_store: NamedDependency[ModelStore]) -> Response[bytes]:
    """The model for requests that name none."""
    return _default(await model_store.read())


@put("/models/default", opt={"scope": "admin"})
async def set_default(
    request: Request[Any, Any, Any],
    model_store: NamedDependency[ModelStore],
    gateway: NamedDependency[Gateway],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Choose the default; requests that were accepted before stay with the last one."""
    wanted = await gateway.parse(request, DefaultRequest)
    amendment = partial(amendments.set_default, name=wanted.id)
    return _default(await model_store.amend(amendment, dry_run=dry_run), dry_run=dry_run)


MODEL_ROUTES = [list_registry, load_model, unload_model, reload_model, get_default, set_default]


def _listed(registry: ModelRegistry, fleet: Fleet, poller: RegistryPoller, *, dry_run: bool = False) -> Response[bytes]:
    return _respond(
        RegistryAnswer(
            data=model_states(registry, fleet), default=default_of(registry), file=poller.report, dry_run=dry_run
        )
    )


def _default(registry: ModelRegistry, *, dry_run: bool = False) -> Response[bytes]:
    return _respond(
        DefaultAnswer(id=default_of(registry), chosen=registry.default, listed=registry.listed_default, dry_run=dry_run)
    )


def _respond(answer: msgspec.Struct) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type="application/json")
