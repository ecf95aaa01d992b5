"""The queues as an operator sees and touches them: lanes with what waits and runs, and single requests."""

from __future__ import annotations

import time

import msgspec

from inferflux.broker.broker import Broker
from inferflux.broker.errors import Code, RequestError
from inferflux.broker.ownership import request_key
from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import OWNER_API, OWNER_TENANT, RequestKey, parse_key_id
from inferflux.broker.wire.requests import failure
from inferflux.config.logs import get_logger

from .cancel import Canceller, Order
from .identity import CHAT_ID, COMPLETION_ID, key_of

log = get_logger("api.queues")

MAX_AGED = 200
"""Lanes whose oldest prompt is read to tell its age: the fullest."""

MAX_SCANNED = 20_000
"""Prompts that are read to find one that nobody has claimed: seconds of work, for an operator's one request."""

BY_OPERATOR = failure(Code.CANCELLED, "an operator cancelled the request")


class LaneAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One lane: prompts stored (`depth`), of which some run; the age of the oldest where it was looked up."""

    model: str
    service_class: str
    tenant: str
    depth: int
    num_running: int
    num_waiting: int
    oldest_age_s: float | None


class CancelAnswer(msgspec.Struct, frozen=True):
    """A request that is over: `cancelled` just now, or `ended` before."""

    id: str
    state: str
    dry_run: bool = False


class Queues:
    """Asks the broker each time: for people, not for every second of a machine. Calls may raise BrokerError."""

    def __init__(self, broker: Broker, stamper: Stamper, canceller: Canceller) -> None:
        self._broker = broker
        self._stamper = stamper
        self._canceller = canceller

    async def lanes(self) -> list[LaneAnswer]:
        """Every lane that holds prompts. Costs two calls, and one for each of the `MAX_AGED` fullest lanes."""
        backlog = await self._broker.backlog()
        in_flight = await self._broker.in_flight() if backlog else {}
        fullest = sorted(backlog, key=lambda lane: -backlog[lane])[:MAX_AGED]
        now_s = time.time()
        ages: dict[object, float] = {}
        for lane in fullest:
            oldest = await self._broker.next_prompt(0, lane)
            if oldest is not None:
                ages[lane] = round(max(0.0, now_s - oldest.stored_s), 1)
        return [
            LaneAnswer(
                model=lane.model,
                service_class=lane.service_class.value,
                tenant=lane.tenant,
                depth=backlog[lane],
                num_running=(num_running := min(in_flight.get(lane, 0), backlog[lane])),
                num_waiting=backlog[lane] - num_running,
                oldest_age_s=ages.get(lane),
            )
            for lane in sorted(backlog)
        ]

    async def cancel(self, name: str, *, dry_run: bool = False) -> CancelAnswer:
        """End a request, queued or running, by its id. Raises RequestError when there is none."""
        key = named(name)
        tape = await self._broker.read_tape(key)
        if tape.end is not None:
            return CancelAnswer(name, "ended", dry_run)
        prompt_seq = tape.claim.prompt if tape.claim is not None else None
        if tape.claim is None:
            prompt_seq, whole = await self._find(key)
            if prompt_seq is None and whole:
                raise RequestError(Code.NOT_FOUND, f"no request {name[:200]!r} is queued or running")
        if dry_run:
            return CancelAnswer(name, "cancelled", dry_run)
        await self._canceller.cancel(Order(key, prompt_seq or None, BY_OPERATOR))
        log.info("cancelled by an operator", request=key.request, owner=key.owner)
        return CancelAnswer(name, "cancelled")

    async def _find(self, key: RequestKey) -> tuple[int | None, bool]:
        """The stored prompt of a request, and whether all of the queue was searched."""
        seq = 0
        for _ in range(MAX_SCANNED):
            prompt = await self._broker.next_prompt(seq)
            if prompt is None:
                return None, True
            if request_key(prompt, self._stamper) == key:
                return prompt.seq, False
            seq = prompt.seq
        return None, False


def named(name: str) -> RequestKey:
    """A request by its id as the API gave it, or by `OWNER.REQUEST`. Raises RequestError for any other text."""
    try:
        if name.startswith((OWNER_API, OWNER_TENANT)) and "." in name:
            return parse_key_id(name)
        request = name.removeprefix(CHAT_ID).removeprefix(COMPLETION_ID)
        if "-" not in request:
            raise ValueError(f"{name[:100]!r} is no request id of this API; name a publisher's as t-TENANT.REQUEST")
        return key_of(request)
    except ValueError as error:
        raise RequestError(Code.INVALID_REQUEST, str(error), param="id") from None
