"""The dispatcher: turns an admitted request into a stored prompt, and keeps the exchanges that are open."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from inferflux.broker.broker import Receipt
from inferflux.broker.errors import (
    BrokerUnavailable,
    Code,
    MessageTooLarge,
    QueueFull,
    RequestError,
    TapeFull,
    TooManyLanes,
)
from inferflux.broker.subjects import Lane
from inferflux.broker.wire.requests import failure
from inferflux.config.logs import get_logger
from inferflux.config.metrics import ApiMetrics
from inferflux.config.settings import Settings
from inferflux.registry.models import ModelEntry
from inferflux.registry.tenants import Tenant

from .admission import check_room, service_class
from .ask import Ask
from .cancel import Order
from .desk import Desk, Draft
from .exchange import Exchange, Ticket
from .idempotency import MAX_RACES, Idempotency, Record, Slot, Standing, header
from .identity import key_of
from .meter import Meter
from .pressure import Pressure
from .problems import FailureError, to_failure
from .readers import Readers
from .replies import ReplyStream

log = get_logger("api")

RESUMABLE_HEADER = "x-inferflux-resumable"
DRAIN_RETRY_S = 1.0
LAST_WORDS_S = 2.0
"""After the drain timeout, how long clients get to read how their streams ended."""


class Arrival(msgspec.Struct, frozen=True):
    """A request at the door. `started_s` is on the monotonic clock."""

    tenant: Tenant
    model: ModelEntry
    ask: Ask
    lane: Lane
    headers: Mapping[str, str]
    started_s: float
    key_id: str | None


class Dispatcher:
    """`draining` says that this replica is leaving; `idle` is set while no exchange is open."""

    def __init__(
        self,
        settings: Settings,
        desk: Desk,
        readers: Readers,
        idempotency: Idempotency,
        pressure: Pressure,
        metrics: ApiMetrics,
    ) -> None:
        self.draining = False
        self._refusing = False
        self._settings = settings
        self._desk = desk
        self._readers = readers
        self._idempotency = idempotency
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
        self, tenant: Tenant, model: ModelEntry, ask: Ask, headers: Mapping[str, str], *, key_id: str | None = None
    ) -> Exchange:
        """Admit, stamp and store a prompt, or join the one that runs under the same idempotency key.

        Raises RequestError, FailureError or BrokerError; then nothing was started.
        """
        self._refuse_when_leaving()
        lane = Lane(model.id, service_class(ask.tier, tenant), tenant.id)
        arrival = Arrival(tenant, model, ask, lane, headers, time.monotonic(), key_id)
        name = header(headers)
        if name is not None:
            return await self._once(arrival, name)
        resumable = headers.get(RESUMABLE_HEADER, "").lower() in ("true", "1")
        draft = Draft(self._desk.identity.new_key(tenant.id), lane, ask, time.time(), tenant.salt, key_id=key_id)
        _, exchange = await self._start(arrival, draft, resumable=resumable)
        return exchange

    async def resume(self, ticket: Ticket, seen_seq: int) -> Exchange:
        """Read an accepted request again, from its tape on. Raises BrokerError."""
        self._refuse_when_leaving()
        stream = await self._readers.follow(ticket.key, seen_seq)
        log.info("resumed", request=ticket.key.request, owner=ticket.key.owner, seq=seen_seq)
        return self._opened(ticket, stream, time.monotonic())

    def give_notice(self) -> None:
        """Say that this replica is leaving, and go on as before until it drains."""
        self.draining = True

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests and let the open ones end; after the timeout end them here. Who may come back for an
        answer finds it at another replica."""
        self.draining = self._refusing = True
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

    async def _once(self, arrival: Arrival, name: str) -> Exchange:
        tenant, digest = arrival.tenant.id, arrival.ask.digest
        for _ in range(MAX_RACES):
            fresh = Record(request=self._desk.identity.new_key(tenant).request, digest=digest, created=time.time())
            slot: Slot | None = await self._idempotency.enter(tenant, name, fresh)
            assert slot is not None
            if not slot.mine:
                standing = await self._idempotency.standing(slot.record)
                if standing is Standing.OPEN:
                    return await self._join(arrival, slot)
                if standing is Standing.GONE:
                    raise RequestError(
                        Code.STREAM_GONE,
                        "this request has been answered, and its answer is no longer kept; use a new Idempotency-Key",
                        param="Idempotency-Key",
                    )
                slot = await self._idempotency.replace(slot, fresh)
            if slot is not None:
                return await self._first(arrival, slot)
        raise BrokerUnavailable(f"the idempotency key changed {MAX_RACES} times while it was read")

    async def _first(self, arrival: Arrival, slot: Slot) -> Exchange:
        try:
            receipt, exchange = await self._start(arrival, self._draft(arrival, slot), resumable=True)
        except (RequestError, FailureError):
            await self._idempotency.withdraw(slot)
            raise
        await self._idempotency.stored(slot, receipt.seq)
        return exchange

    async def _join(self, arrival: Arrival, slot: Slot) -> Exchange:
        draft, record = self._draft(arrival, slot), slot.record
        seq = record.prompt
        if seq is None:
            # Its replica may have died before it published, or is about to: the message id makes both one.
            receipt = await self._publish(arrival, draft)
            await self._idempotency.stored(slot, receipt.seq)
            seq = receipt.seq
        stream = await self._readers.follow(draft.key)
        log.info("joined", request=draft.key.request, owner=draft.key.owner)
        return self._opened(self._ticket(arrival, draft, seq, resumable=True), stream, arrival.started_s)

    def _draft(self, arrival: Arrival, slot: Slot) -> Draft:
        key, created_s, salt = key_of(slot.record.request), slot.record.created, arrival.tenant.salt
        return Draft(key, arrival.lane, arrival.ask, created_s, salt, key_id=arrival.key_id, slot=slot.name)

    async def _start(self, arrival: Arrival, draft: Draft, *, resumable: bool) -> tuple[Receipt, Exchange]:
        tenant = arrival.tenant
        num_queued = 0 if tenant.max_queued is None else self._pressure.num_queued(tenant.id)
        retry_s = self._pressure.retry_after_s(arrival.model.id)
        check_room(tenant, num_queued, self._pressure.tape_fill, self._settings.tape.high_water, retry_s)
        stream = self._readers.relay.open(draft.key)
        try:
            receipt = await self._publish(arrival, draft)
        except BaseException as error:
            self._readers.relay.forget(stream)
            if isinstance(error, BrokerUnavailable | asyncio.CancelledError):
                # It may have been stored all the same, and nobody would read the answer.
                why = failure(Code.CANCELLED, "the request could not be accepted")
                self._readers.vigil.leave(Order(draft.key, None, why), resumable=resumable)
            raise
        place = self._pressure.admit(arrival.lane)
        ticket = self._ticket(arrival, draft, receipt.seq, resumable=resumable, place=place)
        log.info(
            "accepted",
            request=draft.key.request,
            model=arrival.model.id,
            service_class=arrival.lane.service_class.value,
            tenant=tenant.id,
            took_s=round(time.monotonic() - arrival.started_s, 4),
        )
        return receipt, self._opened(ticket, stream, arrival.started_s)

    async def _publish(self, arrival: Arrival, draft: Draft) -> Receipt:
        """Raises FailureError for what is too large, and with the time after which there may be room."""
        try:
            return await self._desk.publish(draft, arrival.headers)
        except MessageTooLarge as error:
            raise FailureError(to_failure(error)) from error
        except (QueueFull, TooManyLanes, TapeFull) as error:
            retry_s = self._pressure.retry_after_s(arrival.model.id)
            raise FailureError(msgspec.structs.replace(to_failure(error), retry_after_s=retry_s)) from error

    def _ticket(self, arrival: Arrival, draft: Draft, prompt_seq: int, **fields: Any) -> Ticket:
        return Ticket(draft.key, arrival.lane, arrival.model, prompt_seq, draft.created_s, arrival.started_s, **fields)

    def _opened(self, ticket: Ticket, stream: ReplyStream, started_s: float) -> Exchange:
        fresh = ticket.place is not None
        trace = self._desk.trace(ticket.key.request)
        meter = Meter(self._metrics, ticket.model.id, ticket.key.request, started_s, fresh=fresh, trace=trace)
        exchange = Exchange(ticket, stream, self._readers.patience, meter, self._on_close)
        self._readers.opened(ticket.key)
        self._open.add(exchange)
        self._idle.clear()
        return exchange

    def _refuse_when_leaving(self) -> None:
        if self._refusing:
            raise RequestError(
                Code.DRAINING, "this server is shutting down; send the request again", retry_after_s=DRAIN_RETRY_S
            )

    def _on_close(self, exchange: Exchange) -> None:
        self._readers.closed(exchange, draining=self.draining)
        if exchange.over and exchange.ticket.place is not None:
            self._pressure.ended(exchange.ticket.model.id)
        self._open.discard(exchange)
        if not self._open:
            self._idle.set()
