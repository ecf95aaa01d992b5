"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from inferflux.broker.errors import Code, RequestError
from inferflux.registry.fleet import Fleet
from inferflux.registry.models import ModelEntry

from ..answers import ModelAnswer, ModelList
from ..auth import principal_of, usable_model
from ..gateway import STUB, Gateway

READY = "ready"


@get("/models", opt={"scope": "read"})
async def list_models(
    request: Request[Any, Any, Any], gateway: NamedDependency[Gateway], fleet: NamedDependency[Fleet]
) -> Response[bytes]:
    """Every model that the key may use."""
    principal = principal_of(request)
    entries = [entry for entry in gateway.models if principal.may_use(entry.id)]
    return _respond(ModelList(data=[_answer(gateway, fleet, entry) for entry in entries]))


@get("/models/{model_id:path}", opt={"scope": "read"})
async def get_model(
    request: Request[Any, Any, Any],
    model_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    fleet: NamedDependency[Fleet],
) -> Response[bytes]:
    """One model, by id or alias; ids may hold slashes."""
    name = model_id.removeprefix("/")
    if not name:
        raise RequestError(Code.NOT_FOUND, "the path ends where a model's id should be")
    return _respond(_answer(gateway, fleet, usable_model(gateway.models, name, principal_of(request))))


def _answer(gateway: Gateway, fleet: Fleet, entry: ModelEntry) -> ModelAnswer:
    beats = [beat for beat in fleet.models(entry.id) if beat.state == READY]
    # A worker knows better than this replica, which may not see the model's file.
    backend = beats[0].backend if beats else entry.backend
    stub = backend == STUB
    return ModelAnswer(
        id=entry.id,
        created=gateway.started,
        backend=backend,
        stub=stub,
        stub_reason=entry.stub_reason if stub else None,
        ready=bool(beats),
        num_workers=len(beats),
        context_length=beats[0].context_length or None if beats else entry.context_length,
        default=gateway.models.resolve(None) is entry,
        aliases=entry.aliases,
    )


def _respond(answer: msgspec.Struct) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type="application/json")
