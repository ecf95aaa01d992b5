"""/v1/admin/fairness: weights and class shares, as they are and as they shall be."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, put
from litestar.di import NamedDependency
from litestar.params import FromQuery
from msgspec import Meta

from inferflux.broker.wire.policies import Fairness
from inferflux.registry.fairness import FairnessStore, ShareName, shares
from inferflux.registry.tenants import Tenants

from ..gateway import Gateway

Weight = Annotated[float, Meta(gt=0, le=1e6)]
Share = Annotated[float, Meta(ge=0, le=1)]
TenantName = Annotated[str, Meta(min_length=1, max_length=200)]


class FairnessRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What shall change; null gives a value back to the settings, and what is not named stays."""

    weights: dict[TenantName, Weight | None] = {}
    min_share: dict[ShareName, Share | None] = {}


class Changes(msgspec.Struct, frozen=True):
    """What was changed while the fleet runs."""

    weights: dict[str, float]
    min_share: dict[ShareName, float]


class FairnessAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Every weight that is not 1 and the shares in force, and which of them differ from the settings."""

    weights: dict[str, float]
    min_share: dict[str, float]
    changed: Changes
    dry_run: bool = False


@get("/fairness", opt={"scope": "admin"})
async def get_fairness(
    fairness_store: NamedDependency[FairnessStore], tenants: NamedDependency[Tenants], gateway: NamedDependency[Gateway]
) -> Response[bytes]:
    """Weights and shares in force."""
    return _respond(await fairness_store.read(), tenants, gateway)


@put("/fairness", opt={"scope": "admin"})
async def change_fairness(
    request: Request[Any, Any, Any],
    fairness_store: NamedDependency[FairnessStore],
    tenants: NamedDependency[Tenants],
    gateway: NamedDependency[Gateway],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Change weights and shares of the running fleet; workers follow within a second or so."""
    wanted = await gateway.parse(request, FairnessRequest)
    changed = await fairness_store.change(wanted.weights, wanted.min_share, dry_run=dry_run)
    return _respond(changed, tenants, gateway, dry_run=dry_run)


def _respond(changed: Fairness, tenants: Tenants, gateway: Gateway, *, dry_run: bool = False) -> Response[bytes]:
    weights = {tenant.id: tenant.weight for tenant in tenants.all() if tenant.weight != 1.0}
    in_force = shares(gateway.settings.fairness.min_share, changed)
    answer = FairnessAnswer(
        weights=weights | changed.weights,
        min_share=msgspec.structs.asdict(in_force),
        changed=Changes(changed.weights, changed.min_share),
        dry_run=dry_run,
    )
    return Response(msgspec.json.encode(answer), media_type="application/json")
