"""Admission: which class a request runs in, whether there is room for it, and when waiting is over. Pure."""

from __future__ import annotations

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.subjects import ServiceClass
from inferflux.broker.wire.requests import Failure, failure
from inferflux.registry.tenants import Tenant

from .schemas import Tier

TIER_OF_CLASS: dict[ServiceClass, Tier] = {
    ServiceClass.PRIORITY: "priority",
    ServiceClass.DEFAULT: "default",
    ServiceClass.BATCH: "flex",
}
_CLASS_OF_TIER = {tier: service_class for service_class, tier in TIER_OF_CLASS.items()}

FULL_RETRY_S = 1.0


def service_class(tier: Tier | None, tenant: Tenant) -> ServiceClass:
    """`auto` is `default` where the tenant may use it, else its highest class. Raises RequestError."""
    if tier is None or tier == "auto":
        if ServiceClass.DEFAULT in tenant.classes:
            return ServiceClass.DEFAULT
        return next(each for each in ServiceClass if each in tenant.classes)
    wanted = _CLASS_OF_TIER[tier]
    if wanted not in tenant.classes:
        allowed = ", ".join(TIER_OF_CLASS[each] for each in ServiceClass if each in tenant.classes)
        raise RequestError(
            Code.CLASS_NOT_ALLOWED,
            f"your key may not use the service tier {tier!r}, only {allowed}",
            param="service_tier",
        )
    return wanted


def check_room(
    tenant: Tenant, num_queued: int, tape_fill: float, high_water: float, retry_after_s: float = FULL_RETRY_S
) -> None:
    """Raises RequestError when the tape is nearly full, or when the tenant has as much queued as it may."""
    if tape_fill >= high_water:
        raise RequestError(
            Code.TAPE_FULL, "the server holds as much output as it may; try again shortly", retry_after_s=retry_after_s
        )
    if tenant.max_queued is not None and num_queued >= tenant.max_queued:
        raise RequestError(
            Code.QUEUE_FULL,
            f"you have {num_queued} requests queued or running, and may have {tenant.max_queued}; try again shortly",
            retry_after_s=retry_after_s,
        )


def no_backend(model: str, *, waited_s: float, absent_s: float, grace_s: float) -> Failure | None:
    """How a request ends that waited out the grace while no worker had its model."""
    if min(waited_s, absent_s) < grace_s or absent_s == 0:
        return None
    return failure(
        Code.NO_BACKEND,
        f"no worker has the model {model!r} loaded; start one, or try again shortly",
        retry_after_s=max(1.0, grace_s),
    )


def queue_timeout(*, waited_s: float, timeout_s: float) -> Failure | None:
    """How a request ends that no worker has started in time."""
    if waited_s < timeout_s:
        return None
    return failure(Code.QUEUE_TIMEOUT, f"no worker could start this request within {timeout_s:g} s")
