"""/v1/admin/tenants: tenants as they are in force, and what operators change of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, delete, get, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from msgspec import UNSET, Meta, UnsetType

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.subjects import encode_token
from inferflux.broker.wire.policies import TenantRecord
from inferflux.config.settings import ServiceClassName
from inferflux.registry.identities import TenantRecords
from inferflux.registry.tenants import Tenant, Tenants

from ..gateway import Gateway

TenantName = Annotated[str, Meta(min_length=1, max_length=200)]
Bound = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class TenantRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What shall change; null gives a value back to the settings, and what is not named stays."""

    weight: Annotated[float, Meta(gt=0, le=1000000.0)] | UnsetType | None = UNSET
    classes: Annotated[tuple[ServiceClassName, ...], Meta(min_length=1)] | UnsetType | None = UNSET
    max_queued: Bound | UnsetType | None = UNSET
    max_running: Bound | UnsetType | None = UNSET
    cache_group: TenantName | UnsetType | None = UNSET
    publish: bool | UnsetType | None = UNSET
    file_quota_bytes: Annotated[int, Meta(ge=1, le=2**53)] | UnsetType | None = UNSET
    file_retention_s: Annotated[float, Meta(ge=1, le=1e9)] | UnsetType | None = UNSET


class TenantAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant in force; `changed` names what operators changed, `origin` says whether the settings know it."""

    id: str
    weight: float
    classes: tuple[str, ...]
    max_queued: int | None
    max_running: int | None
    cache_group: str | None
    publish: bool
    file_quota_bytes: int | None
    file_retention_s: float | None
    changed: tuple[str, ...]
    origin: Literal["settings", "created"]
    dry_run: bool = False


@get("/tenants", opt={"scope": "admin"})
async def list_tenants(
    tenants: NamedDependency[Tenants], tenant_records: NamedDependency[TenantRecords]
) -> Response[bytes]:
    """Every tenant that the settings or operators name; others have weight 1 and the default rights."""
    records = {record.id: record for record in await tenant_records.all()}
    names = {tenant.id for tenant in tenants.all()} | records.keys()
    data = [_answer(tenants, name, records.get(name)) for name in sorted(names)]
    return _respond({"object": "list", "data": data})


@get("/tenants/{tenant_id:path}", opt={"scope": "admin"})
async def get_tenant(tenant_id: FromPath[str], tenants: NamedDependency[Tenants]) -> Response[bytes]:
    """One tenant as it is in force here, named anywhere or not."""
    name = checked_name(tenant_id.removeprefix("/"))
    return _respond(_answer(tenants, name, tenants.record(name)))


@put("/tenants/{tenant_id:path}", opt={"scope": "admin"})
async def change_tenant(
    request: Request[Any, Any, Any],
    tenant_id: FromPath[str],
    tenants: NamedDependency[Tenants],
    tenant_records: NamedDependency[TenantRecords],
    gateway: NamedDependency[Gateway],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Change a tenant, or make one; replicas and workers follow within a second."""
    name = checked_name(tenant_id.removeprefix("/"))
    wanted = msgspec.structs.asdict(await gateway.parse(request, TenantRequest))
    changes = {field: value for field, value in wanted.items() if value is not UNSET}
    record = await tenant_records.change(name, changes, dry_run=dry_run)
    return _respond(msgspec.structs.replace(_answer(tenants, name, record), dry_run=dry_run))


@delete("/tenants/{tenant_id:path}", status_code=200, opt={"scope": "admin"})
async def delete_tenant(
    tenant_id: FromPath[str], tenant_records: NamedDependency[TenantRecords], dry_run: FromQuery[bool] = False
) -> Response[bytes]:
    """Give everything back to the settings. Keys of the tenant go on with what is left of it."""
    name = checked_name(tenant_id.removeprefix("/"))
    if not await tenant_records.delete(name, dry_run=dry_run):
        raise RequestError(Code.NOT_FOUND, f"nothing was changed of a tenant {name!r}")
    return _respond({"id": name, "deleted": not dry_run, "dry_run": dry_run})


def checked_name(name: str) -> str:
    """A tenant's name that subjects can carry. Raises RequestError."""
    try:
        if not name.isprintable():
            raise ValueError("its name has characters that nobody can see")
        encode_token(name)
    except ValueError as error:
        raise RequestError(Code.INVALID_REQUEST, f"tenant: {error}", param="tenant") from None
    return name


def _answer(tenants: Tenants, name: str, record: TenantRecord | None) -> TenantAnswer:
    tenant: Tenant = tenants.with_record(name, record)
    said = {} if record is None else msgspec.structs.asdict(record)
    return TenantAnswer(
        id=name,
        weight=tenant.weight,
        classes=tuple(each.value for each in tenant.classes),
        max_queued=tenant.max_queued,
        max_running=tenant.max_running,
        cache_group=tenant.cache_group,
        publish=tenant.publish,
        file_quota_bytes=tenant.file_quota_bytes,
        file_retention_s=tenant.file_retention_s,
        changed=tuple(field for field, value in said.items() if field != "id" and value is not None),
        origin="created" if tenants.configured(name) is None else "settings",
    )


def _respond(answer: object) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type="application/json")
