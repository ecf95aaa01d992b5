"""The asker: one line of a batch through the queue, until it has an answer or an error that stands.

A line's request id follows from batch, line and try, so a replica that takes a batch over joins what the last one
asked: the stream stores a prompt once, the claim lets it run once, and the tape has what it answered.
"""

from __future__ import annotations

import asyncio
import time
from itertools import count

import msgspec

from inferflux.broker.broker import Tape
from inferflux.broker.errors import (
    DENIALS,
    BrokerUnavailable,
    Code,
    MessageTooLarge,
    QueueFull,
    RequestError,
    TapeFull,
    TooManyLanes,
)
from inferflux.broker.subjects import Lane, RequestKey, api_owner
from inferflux.broker.wire.batches import Batch
from inferflux.broker.wire.requests import Failure, Usage
from inferflux.config.audit import Actor
from inferflux.registry.guardrails.guard import told
from inferflux.registry.models import ModelEntry
from inferflux.registry.tenants import Tenant

from ..assembly import WAKE_S, Assembly
from ..desk import Draft
from ..exchange import Ticket
from ..problems import FailureError, http_error, problem, to_failure
from ..relay import Relay
from ..replies import ReplyStream
from .identity import token
from .services import Services, insist
from .task import Task

WAITS = frozenset(
    code.value
    for code in (
        Code.QUEUE_FULL,
        Code.TAPE_FULL,
        Code.TOO_MANY_LANES,
        Code.BROKER_UNAVAILABLE,
        Code.DRAINING,
        Code.NO_BACKEND,
        Code.QUEUE_TIMEOUT,
        Code.RATE_LIMIT_EXCEEDED,
        Code.GUARDRAIL_UNAVAILABLE,
        Code.AUDIT_UNAVAILABLE,
        Code.STREAM_DIVERGED,
    )
)
"""Errors that say nothing about the request: it is asked again until the batch's time is up."""

LOOK_S = 0.2
MAX_PAUSE_S = 30.0


class Outcome(msgspec.Struct, frozen=True):
    """How a line ended: an HTTP status and body as the endpoint would have answered, and what was computed for it."""

    status: int
    body: bytes
    usage: Usage
    key: RequestKey


class Asker:
    """Asks for the lines of one batch; `relay` hears all of their replies. `open` is what is in flight: the prompt's
    sequence of each request, None while it is not known to be stored."""

    def __init__(self, services: Services, relay: Relay, batch: Batch, lane: Lane) -> None:
        self.open: dict[RequestKey, int | None] = {}
        self._services = services
        self._relay = relay
        self._batch = batch
        self._token = token(batch)
        self._lane = lane
        self._tenant: Tenant = services.tenants.tenant(lane.tenant)

    async def ask(self, task: Task, model: ModelEntry, *, known: bool) -> Outcome:
        """`known` is a line that another replica may have asked already."""
        num_pauses = num_diverged = 0
        for number in count():
            key = RequestKey(api_owner(self._token), f"{self._token}-{task.number}-{number}")
            while True:
                await self._until_room()
                try:
                    return await self._once(key, task, model, known=known)
                except FailureError as error:
                    if error.failure.code not in WAITS:
                        return self._refused(key, error.failure)
                    self._services.metrics.batch_lines.labels(model.id, "tried again").inc()
                    if error.failure.code == Code.STREAM_DIVERGED:
                        # The tape was lost. What runs may still come to its end; what is gone has to be asked anew.
                        num_diverged += 1
                        known = True
                        if num_diverged % 2:
                            continue
                        break
                    await asyncio.sleep(_pause_s(num_pauses, error.failure))
                    break
                except (QueueFull, TooManyLanes, TapeFull, BrokerUnavailable) as error:
                    await asyncio.sleep(_pause_s(num_pauses, to_failure(error)))
                    num_pauses += 1
                except RequestError as error:
                    if error.retry_after_s is None:
                        self._audit(key, error)
                        return self._refused(key, to_failure(error))
                    await asyncio.sleep(_pause_s(num_pauses, to_failure(error)))
                    num_pauses += 1
                except MessageTooLarge as error:
                    return self._refused(key, to_failure(error))
            num_pauses += 1
        raise AssertionError("counting has no end")

    async def _once(self, key: RequestKey, task: Task, model: ModelEntry, *, known: bool) -> Outcome:
        """Raises FailureError for a terminal error frame, BrokerError for what could not be stored."""
        stream = self._relay.open(key)
        self.open[key] = None
        try:
            created_s, accepted_s = time.time(), time.monotonic()
            stream.prompt_seq = self.open[key] = await self._stored(stream, key, task, created_s, known=known)
            ticket = Ticket(key, self._lane, model, stream.prompt_seq or 0, created_s, accepted_s)
            assembly = Assembly(ticket)
            while not stream.ended:
                assembly.add(await stream.read(time.monotonic() + WAKE_S))
            body = msgspec.json.encode(task.shape(assembly))
        finally:
            self._relay.forget(stream)
            del self.open[key]
        return Outcome(200, body, assembly.usage, key)

    async def _stored(
        self, stream: ReplyStream, key: RequestKey, task: Task, created_s: float, *, known: bool
    ) -> int | None:
        """Store the prompt, unless it ran already. Returns its sequence, where that matters."""
        if known:
            tape: Tape = await self._services.broker.read_tape(key)
            if tape.end is not None:
                stream.reread()
                return None
        draft = Draft(
            key,
            self._lane,
            task.ask,
            created_s,
            self._tenant.salt,
            deadline_s=self._batch.expires,
            headed=False,
            key_id=self._batch.key,
        )
        receipt = await self._services.desk.publish(draft, {})
        if receipt.duplicate or known:
            stream.prompt_seq = receipt.seq
            stream.reread()
        return receipt.seq

    async def _until_room(self) -> None:
        """Wait while nothing could come of asking: no worker has the model, or the tape is nearly full."""
        services, model = self._services, self._lane.model
        high_water = services.settings.tape.high_water
        while services.fleet.absent_for(model, time.monotonic()) > 0 or services.pressure.tape_fill >= high_water:
            await asyncio.sleep(LOOK_S)

    def _audit(self, key: RequestKey, error: RequestError) -> None:
        if error.code in DENIALS:
            actor = Actor(id=self._batch.key, tenant=self._tenant.id, source="batch")
            audit = self._services.audit
            audit.record("request.refuse", actor, "denied", request=key.request, **told(error, audit))

    def _refused(self, key: RequestKey, failure: Failure) -> Outcome:
        return Outcome(http_error(failure.code).status, msgspec.json.encode(problem(failure)), Usage(), key)

    async def forget(self, keys: list[RequestKey]) -> None:
        """Drop the tapes of requests whose answers are kept elsewhere."""
        await asyncio.gather(*(insist(lambda key=key: self._services.broker.purge_tape(key)) for key in keys))  # type: ignore[misc]


def _pause_s(num_pauses: int, failure: Failure) -> float:
    return min(max(failure.retry_after_s or 0.0, 0.25 * 2.0 ** min(num_pauses, 8)), MAX_PAUSE_S)
