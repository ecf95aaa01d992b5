"""The dispatcher: turns an admitted request into a stored prompt, and keeps the exchanges that are open."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

from inferflux.broker.broker import Broker
from inferflux.broker.errors import BrokerUnavailable, Code, RequestError
from inferflux.broker.stamp import Stamp, Stamper
from inferflux.broker.subjects import HEADER_STAMP, HEADER_TRACEPARENT, Lane, RequestKey, infer
from inferflux.broker.wire import AnyPrompt, encode, failure
from inferflux.config.logs import get_logger
from inferflux.config.metrics import ApiMetrics
from inferflux.config.settings import Settings
from inferflux.registry.models import ModelEntry
from inferflux.registry.tenants import Tenant

from .admission import check_room, service_class
from .cancel import Canceller, Order
from .exchange import Exchange, Ticket
from .identity import Identity
from .meter import Meter
from .patience import Patience
from .pressure import Pressure
from .relay import Relay
from .schemas import Tier

log = get_logger("api")

POLICY_REVISION = 0
MAX_TRACEPARENT = 128
DRAIN_RETRY_S = 1.0
LAST_WORDS_S = 2.0
"""After the drain timeout, how long clients get to read how their streams ended."""

Build = Callable[[str, float, float], AnyPrompt]
"""Makes the prompt, given request id, creation time and deadline."""


class Desk:
    """What all requests of one replica share: its identity, its stamp, its relay and its canceller."""

    def __init__(self, identity: Identity, stamper: Stamper, relay: Relay, canceller: Canceller) -> None:
        self.identity = identity
        self.stamper = stamper
        self.relay = relay
        self.canceller = canceller


class Dispatcher:
    """`draining` refuses new requests; `idle` is set while no exchange is open."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        desk: Desk,
        patience: Patience,
        pressure: Pressure,
        metrics: ApiMetrics,
    ) -> None:
        self.draining = False
        self._settings = settings
        self._broker = broker
        self._desk = desk
        self._patience = patience
        self._pressure = pressure
        self._metrics = metrics
        self._open: set[Exchange] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def replica(self) -> str:
        return self._desk.identity.replica

    @property
    def num_open(self) -> int:
        return len(self._open)

    async def submit(
        self, tenant: Tenant, model: ModelEntry, tier: Tier | None, build: Build, headers: Mapping[str, str]
    ) -> Exchange:
        """Admit, stamp and store a prompt. Raises RequestError or BrokerError; then nothing was started."""
        started_s = time.monotonic()
        if self.draining:
            raise RequestError(
                Code.DRAINING, "this server is shutting down; send the request again", retry_after_s=DRAIN_RETRY_S
            )
        lane = Lane(model.id, service_class(tier, tenant), tenant.id)
        tape = self._settings.tape
        check_room(tenant, self._pressure.num_queued(tenant.id), self._pressure.tape_fill, tape.high_water)
        key = self._desk.identity.new_key(tenant.id)
        created_s = time.time()
        deadline_s = created_s + self._settings.queue.queue_timeout_s
        body = encode(build(key.request, created_s, deadline_s))
        stream = self._desk.relay.open(key)
        try:
            stamped = self._headers(lane, key, body, deadline_s, headers)
            receipt = await self._broker.publish_prompt(lane, body, msg_id=key.request, headers=stamped)
        except BaseException as error:
            self._desk.relay.forget(key)
            if isinstance(error, BrokerUnavailable | asyncio.CancelledError):
                # It may have been stored all the same, and nobody would read the answer.
                why = failure(Code.CANCELLED, "the request could not be accepted")
                self._desk.canceller.start(Order(key, None, why))
            raise
        self._pressure.admit(tenant.id)
        ticket = Ticket(key, lane, model, receipt.seq, created_s, started_s)
        meter = Meter(self._metrics, model.id, key.request, started_s)
        exchange = Exchange(ticket, stream, self._desk.canceller, self._patience, meter, self._on_close)
        self._open.add(exchange)
        self._idle.clear()
        log.info(
            "accepted",
            request=key.request,
            model=model.id,
            service_class=lane.service_class.value,
            tenant=tenant.id,
            took_s=round(time.monotonic() - started_s, 4),
        )
        return exchange

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests and let the open ones end; after the timeout end them here."""
        self.draining = True
        if not self._idle.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout_s)
        if self._open:
            log.warning("drain timed out", num_streams=len(self._open))
            why = failure(Code.DRAINING, "the server shut down before this answer was complete")
            for exchange in list(self._open):
                exchange.stop(why)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), LAST_WORDS_S)
        await self._desk.canceller.drain(self._settings.broker.timeout_s)

    def _headers(
        self, lane: Lane, key: RequestKey, body: bytes, deadline_s: float, given: Mapping[str, str]
    ) -> dict[str, str]:
        # A later attempt may come long after the deadline, and the tape lives no longer than this.
        expires_s = int(deadline_s + self._settings.tape.max_age_s)
        stamp = Stamp(key.owner, expires_s, POLICY_REVISION)
        header = self._desk.stamper.write(stamp, subject=infer(lane), msg_id=key.request, body=body)
        headers = {HEADER_STAMP: header}
        traceparent = given.get(HEADER_TRACEPARENT)
        if traceparent is not None and traceparent.isascii() and len(traceparent) <= MAX_TRACEPARENT:
            headers[HEADER_TRACEPARENT] = traceparent
        return headers

    def _on_close(self, exchange: Exchange) -> None:
        self._desk.relay.forget(exchange.ticket.key)
        self._open.discard(exchange)
        if not self._open:
            self._idle.set()
