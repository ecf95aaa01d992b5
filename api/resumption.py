"""Resumption: an accepted request, read again from any replica by its id, or ended."""

from __future__ import annotations

import time

from litestar import Response

from inferflux.broker.broker import Broker
from inferflux.broker.errors import Code, RequestError
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.broker.wire.requests import Head, failure
from inferflux.config.logs import get_logger
from inferflux.registry.models import ModelEntry
from inferflux.registry.tenants import Principal

from .cancel import Canceller, Order
from .events import ChatEvents, CompletionEvents
from .exchange import Ticket
from .gateway import Gateway, Watch
from .identity import Identity
from .mark import Mark
from .queues import CancelAnswer

log = get_logger("api")

BY_CLIENT = failure(Code.CANCELLED, "the client cancelled the request")


class Resumption:
    """Knows a request by the head on its tape, which whoever accepted it has left there."""

    def __init__(self, broker: Broker, identity: Identity, gateway: Gateway, canceller: Canceller) -> None:
        self._broker = broker
        self._identity = identity
        self._gateway = gateway
        self._canceller = canceller

    async def stream(self, principal: Principal, name: str, after: Mark | None, watch: Watch) -> Response[bytes]:
        """The events behind the mark, and what comes. Raises RequestError or BrokerError."""
        key, head = await self._find(principal, name)
        if head.kind == "embedding":
            raise RequestError(
                Code.INVALID_REQUEST, "embeddings are not streamed; repeat the request under its Idempotency-Key"
            )
        ticket = self._ticket(key, head)
        exchange = await self._gateway.dispatcher.resume(ticket, after.seq if after is not None else 0)
        exchange.watch(watch)
        kind = ChatEvents if head.kind == "chat" else CompletionEvents
        return await self._gateway.stream(exchange, kind(ticket, include_usage=head.include_usage, after=after))

    async def cancel(self, principal: Principal, name: str) -> CancelAnswer:
        """End a request for all who read it. Raises RequestError or BrokerError."""
        key, head = await self._find(principal, name)
        if (await self._broker.read_tape(key)).end is not None:
            return CancelAnswer(name, "ended")
        await self._canceller.cancel(Order(key, head.prompt, BY_CLIENT))
        log.info("cancelled by its client", request=key.request, owner=key.owner)
        return CancelAnswer(name, "cancelled")

    async def _find(self, principal: Principal, name: str) -> tuple[RequestKey, Head]:
        key = self._identity.key_of(name, principal.tenant.id)
        if key is None:
            raise _unknown()
        head = await self._broker.read_head(key)
        if head is None:
            raise RequestError(
                Code.STREAM_GONE, "this stream is no longer kept; send the request again, or ask sooner next time"
            )
        if not principal.may_use(head.model):
            raise _unknown()
        return key, head

    def _ticket(self, key: RequestKey, head: Head) -> Ticket:
        # A model that is no longer served here still has its stream.
        model = self._gateway.models.resolve(head.model) or ModelEntry(id=head.model, path=None, backend="llamacpp")
        lane = Lane(head.model, ServiceClass(head.service_class), head.tenant)
        accepted_s = time.monotonic() - max(0.0, time.time() - head.created)
        return Ticket(key, lane, model, head.prompt, head.created, accepted_s, resumable=True)


def _unknown() -> RequestError:
    return RequestError(Code.NOT_FOUND, "there is no such stream, or it is not yours")
