"""/v1/admin/policy: whether the policy store is sealed and whole, and putting back what somebody changed."""

from __future__ import annotations

import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from inferflux.broker.errors import Code, RequestError
from inferflux.registry.store import PolicyStore
from inferflux.registry.vault import Vault


class RefusedEntry(msgspec.Struct, frozen=True):
    """An entry that this replica does not follow, and why; what was in force before stays."""

    bucket: str
    key: str
    reason: str


class PolicyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The policy store as this replica sees it. `generation` counts its changes."""

    sealed: bool
    generation: int
    num_entries: int
    refused: list[RefusedEntry]


class RepairAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Entries, as `bucket/key`, that were put back, and those that this replica never saw in order."""

    repaired: list[str]
    left: list[str]
    dry_run: bool


@get("/policy", opt={"scope": "admin"})
async def get_policy(policy_store: NamedDependency[PolicyStore]) -> Response[bytes]:
    """Sealed or not, and what is refused."""
    vault = policy_store.seal if isinstance(policy_store.seal, Vault) else None
    refused = [RefusedEntry(bucket, key, reason) for (bucket, key), reason in sorted(policy_store.refused.items())]
    answer = PolicyAnswer(
        sealed=vault is not None,
        generation=0 if vault is None else vault.generation,
        num_entries=0 if vault is None else len(vault.generations),
        refused=refused,
    )
    return _respond(answer)


@post("/policy/repair", status_code=200, opt={"scope": "admin"})
async def repair_policy(
    policy_store: NamedDependency[PolicyStore], dry_run: FromQuery[bool] = False
) -> Response[bytes]:
    """Store what is in force again, as a newer generation, over every entry that is refused."""
    if not isinstance(policy_store.seal, Vault):
        raise RequestError(Code.INVALID_REQUEST, "the policy store is not sealed: nothing can be refused")
    repaired, left = await policy_store.repair(dry_run=dry_run)
    return _respond(RepairAnswer(repaired=repaired, left=left, dry_run=dry_run))


def _respond(answer: msgspec.Struct) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type="application/json")
