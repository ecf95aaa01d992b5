"""The gateway: what the generating routes share, from a parsed request to its HTTP answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from litestar import Request, Response

from inferflux.broker.errors import Code, RequestError
from inferflux.config.settings import Settings
from inferflux.registry.models import Models

from . import parameters
from .ask import Ask
from .assembly import Shape, assemble
from .auth import principal_of, usable_model
from .dispatch import Dispatcher
from .events import Events
from .exchange import GONE, ClientGone, Exchange
from .problems import FailureError, respond
from .stream import EventStream
from .throttle import Throttle

Watch = Callable[[], Awaitable[Any]]
R = TypeVar("R", bound=msgspec.Struct)

STUB = "stub"
JSON_TYPES = ("", "application/json")
PLAIN = ("", "identity")


class Gateway:
    """Owns no request: exchanges live in the dispatcher. `started` is Unix time."""

    def __init__(self, settings: Settings, models: Models, throttle: Throttle, dispatcher: Dispatcher) -> None:
        self.settings = settings
        self.models = models
        self.throttle = throttle
        self.dispatcher = dispatcher
        self.started = int(time.time())

    async def parse(self, request: Request[Any, Any, Any], request_type: type[R]) -> R:
        """The body as a request. Raises RequestError."""
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in JSON_TYPES:
            raise RequestError(
                Code.UNSUPPORTED_MEDIA_TYPE, f"send the body as application/json, not {content_type[:100]}"
            )
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in PLAIN:
            raise RequestError(
                Code.UNSUPPORTED_MEDIA_TYPE, f"send the body as it is, without Content-Encoding: {encoding[:100]}"
            )
        return parameters.read(await request.body(), request_type)

    async def open(self, request: Request[Any, Any, Any], ask: Ask) -> Exchange:
        """Accept a request, or join it. Raises RequestError, FailureError or BrokerError."""
        principal = principal_of(request)
        entry = usable_model(self.models, ask.model, principal)
        await self.throttle.admit(principal, request.scope)
        exchange = await self.dispatcher.submit(principal.tenant, entry, ask, request.headers, key_id=principal.key_id)
        exchange.watch(request.receive)
        return exchange

    async def stream(self, exchange: Exchange, events: Events) -> Response[bytes]:
        """A stream of events; where the request fails before the status was sent, a plain error."""
        server = self.settings.server
        try:
            first = await exchange.read(time.monotonic() + server.hold_status_s)
        except BaseException as error:
            exchange.close()
            if isinstance(error, ClientGone):
                return respond(GONE)
            raise
        if first and first[0].frame.error is not None:
            exchange.close()
            return respond(first[0].frame.error, _headers(exchange, None))
        backend = first[0].frame.backend if first else None
        return EventStream(exchange, events, first, server.ping_interval_s, _headers(exchange, backend))

    async def whole(self, exchange: Exchange, shape: Shape) -> Response[bytes]:
        """One answer, once all of it is there."""
        try:
            assembly = await assemble(exchange)
            body = msgspec.json.encode(shape(assembly))
        except FailureError as error:
            return respond(error.failure, _headers(exchange, None))
        except ClientGone:
            return respond(GONE)
        finally:
            exchange.close()
        headers = _headers(exchange, assembly.backend)
        return Response(body, status_code=200, headers=headers, media_type="application/json")


def _headers(exchange: Exchange, backend: str | None) -> dict[str, str]:
    headers = {"x-request-id": exchange.id}
    outlook = exchange.outlook()
    if outlook is not None:
        headers["x-inferflux-queue-position"] = str(outlook.position)
        if outlook.wait_s is not None:
            headers["x-inferflux-estimated-wait-s"] = f"{outlook.wait_s:.0f}"
    if (backend or exchange.ticket.model.backend) == STUB:
        headers["x-inferflux-backend"] = STUB
    return headers
