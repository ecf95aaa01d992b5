"""The desk: what all requests of one replica share, and the publishing of their prompts."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from inferflux.broker.broker import Broker, Receipt
from inferflux.broker.prefix import prefix_digest
from inferflux.broker.stamp import Stamp, Stamper
from inferflux.broker.subjects import HEADER_PREFIX, HEADER_STAMP, HEADER_TRACEPARENT, Lane, RequestKey, infer
from inferflux.broker.trace import Trace, Tracer
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.requests import Head
from inferflux.config.settings import Settings
from inferflux.registry.guardrails.guard import Guard

from .ask import Ask
from .identity import Identity

MAX_TRACEPARENT = 128


class Draft(msgspec.Struct, frozen=True):
    """A prompt before it is published; published twice, anywhere, it is stored once. `salt` is its tenant's. One that
    is not `headed` is no other replica's business; `deadline_s` is when it is too late to start it, in Unix time.
    `key_id` names the API key it came with, `slot` the record of its idempotency key."""

    key: RequestKey
    lane: Lane
    ask: Ask
    created_s: float
    salt: str
    deadline_s: float | None = None
    headed: bool = True
    key_id: str | None = None
    slot: str | None = None


class Desk:
    """Stamps and publishes as this replica."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        identity: Identity,
        stamper: Stamper,
        guard: Guard,
        tracer: Tracer | None = None,
    ) -> None:
        self.identity = identity
        self._guard = guard
        self._tracer = tracer
        self._traces: dict[str, Trace] = {}
        self._settings = settings
        self._broker = broker
        self._stamper = stamper

    async def publish(self, draft: Draft, given: Mapping[str, str]) -> Receipt:
        """Judge and store the prompt, and leave a head on its tape for other replicas. Raises RequestError for what
        guardrails refuse, BrokerError."""
        key, lane, ask = draft.key, draft.lane, draft.ask
        deadline_s = draft.deadline_s or draft.created_s + self._settings.queue.queue_timeout_s
        prompt, revision = await self._guard.judge(ask.build(key.request, draft.created_s, deadline_s), lane)
        body = encode(msgspec.structs.replace(prompt, key=draft.key_id))
        headers = self._headers(draft, body, deadline_s, revision, given)
        if (prefix := prefix_digest(prompt, draft.salt)) is not None:
            headers[HEADER_PREFIX] = prefix
        try:
            receipt = await self._broker.publish_prompt(lane, body, msg_id=key.request, headers=headers)
        except BaseException as error:
            if (trace := self.trace(key.request)) is not None:
                trace.end({}, error=type(error).__name__)
            raise
        if not draft.headed:
            return receipt
        # Nobody waits for it: a head that is lost costs other replicas the stream, and nothing else.
        self._broker.send_head(
            key,
            Head(
                kind=ask.kind,
                model=lane.model,
                service_class=lane.service_class.value,
                tenant=lane.tenant,
                created=draft.created_s,
                prompt=receipt.seq,
                include_usage=ask.include_usage,
                slot=draft.slot,
            ),
        )
        return receipt

    def trace(self, request: str) -> Trace | None:
        """The trace of a request that was published here, for whoever ends it."""
        return self._traces.pop(request, None)

    def _headers(
        self, draft: Draft, body: bytes, deadline_s: float, revision: int, given: Mapping[str, str]
    ) -> dict[str, str]:
        # A later attempt may come long after the deadline, and the tape lives no longer than this.
        expires_s = int(deadline_s + self._settings.tape.max_age_s)
        stamp = Stamp(draft.key.owner, expires_s, revision)
        header = self._stamper.write(stamp, subject=infer(draft.lane), msg_id=draft.key.request, body=body)
        headers = {HEADER_STAMP: header}
        traceparent = given.get(HEADER_TRACEPARENT)
        if traceparent is not None and traceparent.isascii() and len(traceparent) <= MAX_TRACEPARENT:
            headers[HEADER_TRACEPARENT] = traceparent
        if self._tracer is not None and draft.headed:
            trace = self._tracer.request(draft.ask.kind, draft.lane, headers.get(HEADER_TRACEPARENT))
            self._traces[draft.key.request] = trace
            headers[HEADER_TRACEPARENT] = trace.traceparent
        return headers
