"""The application: its parts put together, its routes, and their life with the process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Router
from litestar.di import Provide
from litestar.types import Message, Scope

from inferflux.broker.broker import Broker
from inferflux.broker.stamp import Stamper
from inferflux.config.settings import Settings
from inferflux.registry.deadletters import DeadLetters
from inferflux.registry.fairness import FairnessStore
from inferflux.registry.follower import FleetFollower
from inferflux.registry.models import Models
from inferflux.registry.tenants import Tenants

from .auth import Gate
from .cancel import Canceller
from .dispatch import Desk, Dispatcher
from .gateway import Gateway
from .identity import Identity
from .patience import Patience
from .pressure import Pressure
from .problems import EXCEPTION_HANDLERS
from .queues import Queues
from .relay import Relay
from .routes import admin, dead, documents, fairness, generation, health, models, queue
from .status import Metrics, Status
from .sweeper import Sweeper


class Parts:
    """Every part of one API replica; `start` and `close` are its life."""

    def __init__(self, settings: Settings, broker: Broker, stamper: Stamper, served: Models, tenants: Tenants) -> None:
        identity = Identity(stamper)
        self.settings = settings
        self.broker = broker
        self.metrics = Metrics()
        self.follower = FleetFollower(broker)
        self.relay = Relay(broker, identity.owner)
        self.pressure = Pressure(broker, count_queues=any(tenant.max_queued for tenant in tenants.all()))
        canceller = Canceller(broker, identity.owner)
        self.dispatcher = Dispatcher(
            settings,
            broker,
            Desk(identity, stamper, self.relay, canceller),
            Patience(settings.queue, self.follower.fleet, canceller),
            self.pressure,
            self.metrics.api,
        )
        self.sweeper = Sweeper(settings.queue, broker, stamper, self.follower, canceller, self.metrics.api)
        self.queues = Queues(broker, stamper, canceller)
        self.gateway = Gateway(settings, served, self.dispatcher)
        self.status = Status(broker, self.follower.fleet, self.dispatcher, self.pressure, self.metrics)

    async def start(self) -> None:
        await self.relay.start()
        await self.pressure.start()
        self.follower.start()
        self.sweeper.start()

    async def close(self) -> None:
        """Ends what is still open at once; drain first where that matters."""
        await self.dispatcher.drain(0.0)
        await self.sweeper.close()
        await self.follower.close()
        await self.pressure.close()
        await self.relay.close()


def create_app(settings: Settings, broker: Broker, stamper: Stamper, served: Models, tenants: Tenants) -> Litestar:
    """The ASGI application of one replica. `app.state.parts` is what it is made of; the broker stays the caller's."""
    parts = Parts(settings, broker, stamper, served, tenants)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await parts.start()
        try:
            yield
        finally:
            await parts.close()

    async def count(message: Message, scope: Scope) -> None:
        if message["type"] == "http.response.start":
            _count(parts.metrics, message["status"], scope)

    app = Litestar(
        route_handlers=[
            Router("/v1", route_handlers=[*_V1, Router("/admin", route_handlers=_ADMIN)], guards=[Gate(tenants)]),
            *_OPEN,
        ],
        dependencies={
            "gateway": _provide(parts.gateway),
            "status": _provide(parts.status),
            "fleet": _provide(parts.follower.fleet),
            "queues": _provide(parts.queues),
            "dead_letters": _provide(DeadLetters(broker)),
            "fairness_store": _provide(FairnessStore(broker)),
            "tenants": _provide(tenants),
        },
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[lifespan],
        before_send=[count],
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
    models.list_models,
    models.get_model,
]
_ADMIN = [
    admin.list_workers,
    admin.get_status,
    queue.list_queues,
    queue.cancel_request,
    dead.list_dead,
    dead.get_dead,
    dead.retry_dead,
    dead.drop_dead,
    fairness.get_fairness,
    fairness.change_fairness,
]
_OPEN = [health.livez, health.readyz, health.metrics, documents.openapi_json, documents.docs]


def _provide(part: Any) -> Provide:
    return Provide(lambda: part, sync_to_thread=False)


def _count(metrics: Metrics, status: int, scope: Scope) -> None:
    # Only routes that exist become labels: what a stranger asks for must not grow the metrics.
    handler = scope.get("route_handler")
    route = scope.get("path_template") or "none" if handler is not None else "none"
    metrics.api.http_requests.labels(scope["method"], route, str(status)).inc()  # type: ignore[typeddict-item]
