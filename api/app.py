"""The application: its parts put together, its routes, and their life with the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Router
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard, Message, Scope

from inferflux.broker.broker import Broker
from inferflux.broker.objects import Objects
from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import OBJECTS_FILES
from inferflux.broker.trace import make_tracer
from inferflux.config.settings import Settings
from inferflux.registry.audit import Anchorage, Anchors
from inferflux.registry.cache import CacheStore
from inferflux.registry.control import Control
from inferflux.registry.deadletters import DeadLetters
from inferflux.registry.fairness import FairnessStore
from inferflux.registry.follower import FleetFollower
from inferflux.registry.guardrails.store import GuardrailStore
from inferflux.registry.identities import ApiKeys, TenantRecords
from inferflux.registry.limits import LimitStore
from inferflux.registry.model_store import ModelsFollower, ModelStore
from inferflux.registry.models import Models
from inferflux.registry.poller import RegistryPoller
from inferflux.registry.usage import UsageBook

from .audit import Auditor
from .auth import Gate
from .batches.office import Office
from .batches.records import BatchRecords
from .batches.services import Services
from .cancel import Canceller
from .desk import Desk
from .dispatch import Dispatcher
from .files import Files
from .gateway import Gateway
from .idempotency import Idempotency
from .identity import Identity
from .leftovers import Leftovers
from .oidc import Oidc
from .patience import Patience
from .presence import Presence
from .pressure import Pressure
from .problems import EXCEPTION_HANDLERS
from .queues import Queues
from .readers import Readers
from .relay import Relay
from .resumption import Resumption
from .routes import (
    admin,
    api_keys,
    dead,
    documents,
    fairness,
    generation,
    health,
    models,
    policy,
    queue,
    streams,
    tenants,
    ui,
)
from .routes.admin_models import MODEL_ROUTES
from .routes.audit import list_heads
from .routes.batches import BATCH_ROUTES
from .routes.cache import CACHE_ROUTES
from .routes.files import FILE_ROUTES, create_file
from .routes.guardrails import GUARDRAIL_ROUTES
from .routes.rate_limit import LIMIT_ROUTES
from .routes.routing import ROUTING_ROUTES
from .routes.usage import get_usage
from .status import Metrics, Status
from .sweeper import Sweeper
from .throttle import Throttle, add_headers
from .vigil import Vigil

FORM_BYTES = 64 * 1024
"""What a form may have around the file that it uploads."""


class Parts:
    """Every part of one API replica; `start` and `close` are its life."""

    def __init__(self, settings: Settings, broker: Broker, stamper: Stamper, served: Models, control: Control) -> None:
        identity = Identity(stamper)
        self.settings = settings
        self.broker = broker
        self.tracer = make_tracer(settings.tracing, "api")
        self.control = control
        self.metrics = Metrics()
        self.gate = Gate(control.tenants, Oidc.from_settings(settings.auth, control.tenants))
        self.auditor = Auditor(control.audit)
        control.guard.on_hit = self.metrics.policy.count
        self.anchorage = Anchorage(control.audit, Anchors(broker), self.metrics.policy)
        self.follower = FleetFollower(broker)
        self.relay = Relay(broker, identity.owner)
        self.pressure = Pressure(broker, self.follower.fleet)
        self.canceller = Canceller(broker, identity.owner, settings.tape.window_s)
        grace_s = settings.streams.resume_grace_s
        self.presence = Presence(broker, identity.owner, grace_s)
        self.vigil = Vigil(broker, identity.owner, self.canceller, self.presence, self.pressure, grace_s)
        patience = Patience(settings.queue, self.follower.fleet, self.canceller)
        desk = Desk(settings, broker, identity, stamper, control.guard, self.tracer)
        self.dispatcher = Dispatcher(
            settings,
            desk,
            Readers(identity.owner, self.relay, self.presence, self.vigil, patience),
            Idempotency(broker, settings.streams.idempotency_ttl_s, settings.queue.queue_timeout_s),
            self.pressure,
            self.metrics.api,
        )
        self.sweeper = Sweeper(settings.queue, broker, stamper, self.follower, self.canceller, self.metrics.api)
        self.leftovers = Leftovers(broker, settings.tape.window_s)
        self.queues = Queues(broker, stamper, self.canceller)
        throttle = Throttle(broker, control.limits, self.metrics.api)
        self.gateway = Gateway(settings, served, throttle, self.dispatcher)
        self.resumption = Resumption(broker, identity, self.gateway, self.canceller)
        self.model_store = ModelStore(control.store)
        self.poller = RegistryPoller(
            settings, self.model_store, identity.replica, self.presence.is_there, self.metrics.api
        )
        ModelsFollower(served, self.metrics.api).follow(control.registry, control.store)
        objects = Objects(broker.chunks(OBJECTS_FILES))
        self.files = Files(settings.files, control.tenants, objects)
        services = Services(
            settings=settings,
            audit=control.audit,
            broker=broker,
            desk=desk,
            canceller=self.canceller,
            pressure=self.pressure,
            fleet=self.follower.fleet,
            models=served,
            tenants=control.tenants,
            records=BatchRecords(broker),
            objects=objects,
            files=self.files,
            metrics=self.metrics.api,
        )
        self.office = Office(services, identity.replica)
        self.status = Status(broker, self.follower.fleet, self.dispatcher, self.pressure, self.metrics, control.store)

    async def start(self) -> None:
        self.control.start()
        # Not before: who was revoked, and what was forbidden, stays so while a replica starts.
        await self.control.wait_listed(self.settings.broker.timeout_s)
        self.anchorage.start()
        await self.relay.start()
        await self.pressure.start()
        await self.presence.start()
        self.vigil.rounds.start()
        self.follower.start()
        self.sweeper.rounds.start()
        self.leftovers.rounds.start()
        self.office.start()

    async def close(self) -> None:
        """Ends what is still open at once; drain first where that matters."""
        await self.dispatcher.drain(0.0)
        await self.office.close()
        await self.canceller.drain(self.settings.broker.timeout_s)
        await self.vigil.rounds.close()
        await self.presence.close()
        await self.sweeper.rounds.close()
        await self.leftovers.rounds.close()
        await self.follower.close()
        await self.pressure.close()
        await self.relay.close()
        await self.control.close()
        await self.anchorage.close()
        await self.gate.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)


def create_app(settings: Settings, broker: Broker, stamper: Stamper, served: Models, control: Control) -> Litestar:
    """The ASGI application of one replica. `app.state.parts` is what it is made of; the broker stays the caller's."""
    parts = Parts(settings, broker, stamper, served, control)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await parts.start()
        try:
            yield
        finally:
            await parts.close()

    async def begin(message: Message, scope: Scope) -> None:
        if message["type"] == "http.response.start":
            _count(parts.metrics, message["status"], scope)
            parts.auditor.answered(message["status"], scope)
            add_headers(message, scope)
            if parts.dispatcher.draining:
                # A client that kept this connection would come back to a replica that is gone.
                message["headers"] = [*message["headers"], (b"connection", b"close")]

    app = Litestar(
        route_handlers=[
            Router(
                "/v1",
                route_handlers=[
                    *_V1,
                    Router("/admin", route_handlers=_ADMIN),
                    Router(
                        "/", route_handlers=[create_file], request_max_body_size=settings.files.max_bytes + FORM_BYTES
                    ),
                ],
                guards=[_guard(parts.gate), _guard(parts.auditor.guard)],
            ),
            *_OPEN,
        ],
        dependencies={
            "gateway": _provide(parts.gateway),
            "resumption": _provide(parts.resumption),
            "status": _provide(parts.status),
            "model_store": _provide(parts.model_store),
            "cache_store": _provide(CacheStore(control.store)),
            "poller": _provide(parts.poller),
            "fleet": _provide(parts.follower.fleet),
            "queues": _provide(parts.queues),
            "files": _provide(parts.files),
            "batches": _provide(parts.office.batches),
            "api_metrics": _provide(parts.metrics.api),
            "anchors": _provide(Anchors(broker)),
            "dead_letters": _provide(DeadLetters(broker)),
            "control": _provide(control),
            "guardrail_store": _provide(GuardrailStore(control.store, settings.guardrails)),
            "fairness_store": _provide(FairnessStore(control.store)),
            "limit_store": _provide(LimitStore(control.store)),
            "usage_book": _provide(UsageBook(broker)),
            "api_keys": _provide(ApiKeys(control.store)),
            "tenant_records": _provide(TenantRecords(control.store)),
            "policy_store": _provide(control.store),
            "tenants": _provide(control.tenants),
        },
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[lifespan],
        after_exception=[parts.auditor.failed],
        before_send=[begin],
        request_max_body_size=settings.server.max_body_bytes,
        openapi_config=None,
        logging_config=None,
    )
    app.state.parts = parts
    return app


_V1 = [
    generation.create_chat_completion,
    generation.create_completion,
    generation.create_embedding,
    streams.resume_stream,
    streams.cancel_stream,
    models.list_models,
    models.get_model,
    *FILE_ROUTES,
    *BATCH_ROUTES,
]
_ADMIN = [
    admin.list_workers,
    admin.get_status,
    admin.get_metrics,
    queue.list_queues,
    queue.cancel_request,
    dead.list_dead,
    dead.get_dead,
    dead.retry_dead,
    dead.drop_dead,
    fairness.get_fairness,
    fairness.change_fairness,
    *LIMIT_ROUTES,
    get_usage,
    *MODEL_ROUTES,
    *ROUTING_ROUTES,
    *CACHE_ROUTES,
    list_heads,
    api_keys.list_api_keys,
    api_keys.create_api_key,
    api_keys.revoke_api_key,
    tenants.list_tenants,
    tenants.get_tenant,
    tenants.change_tenant,
    tenants.delete_tenant,
    policy.get_policy,
    policy.repair_policy,
    *GUARDRAIL_ROUTES,
]
_OPEN = [health.livez, health.readyz, health.metrics, documents.openapi_json, documents.docs, ui.ui_page, ui.ui_file]


def _provide(part: Any) -> Provide:
    return Provide(lambda: part, sync_to_thread=False)


def _guard(check: Callable[..., Awaitable[None]]) -> Guard:
    """A router copies its guards deeply, and what they know of with them: all but functions."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        await check(connection, handler)

    return guard


def _count(metrics: Metrics, status: int, scope: Scope) -> None:
    # Only routes that exist become labels: what a stranger asks for must not grow the metrics.
    handler = scope.get("route_handler")
    route = scope.get("path_template") or "none" if handler is not None else "none"
    metrics.api.http_requests.labels(scope["method"], route, str(status)).inc()  # type: ignore[typeddict-item]
