"""The services: what every batch of a replica works with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from inferflux.broker.broker import Broker
from inferflux.broker.errors import BrokerUnavailable, StoreFull
from inferflux.broker.objects import Objects
from inferflux.config.audit import Audit
from inferflux.config.metrics import ApiMetrics
from inferflux.config.settings import Settings
from inferflux.registry.fleet import Fleet
from inferflux.registry.models import Models
from inferflux.registry.tenants import Tenants

from ..cancel import Canceller
from ..desk import Desk
from ..files import Files
from ..pressure import Pressure
from .records import BatchRecords

RETRY_S = 0.5

T = TypeVar("T")


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a replica that batches use."""

    settings: Settings
    audit: Audit
    broker: Broker
    desk: Desk
    canceller: Canceller
    pressure: Pressure
    fleet: Fleet
    models: Models
    tenants: Tenants
    records: BatchRecords
    objects: Objects
    files: Files
    metrics: ApiMetrics


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Call until the broker answers, and has room."""
    while True:
        try:
            return await call()
        except (BrokerUnavailable, StoreFull):
            await asyncio.sleep(RETRY_S)
