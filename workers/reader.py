"""From a delivery to a task: whose it is, what it asks, and whether anybody vouches for it."""

from __future__ import annotations

from inferflux.broker.broker import Delivery
from inferflux.broker.errors import RequestError
from inferflux.broker.ownership import owner_of, request_id
from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import HEADER_MSG_ID, HEADER_STAMP, RequestKey, infer
from inferflux.broker.wire.requests import AnyPrompt, Failure, failure
from inferflux.registry.tenants import Tenants

from .attempt import Task
from .prepare import parse
from .seal import Sealer


class PromptReader:
    """Reads prompts. The owner comes from the subject that the prompt was published on, unless a genuine stamp names
    an API replica: so no message can make a worker write to somebody else's subjects."""

    def __init__(self, stamper: Stamper, sealer: Sealer, tenants: Tenants) -> None:
        self._stamper = stamper
        self._sealer = sealer
        self._tenants = tenants

    def read(self, delivery: Delivery) -> Task:
        """Never raises: what cannot be understood is a task with an error, because it too gets its terminal frame."""
        lane = delivery.lane
        msg_id = delivery.headers.get(HEADER_MSG_ID, "")
        stamp = self._stamper.check(
            delivery.headers.get(HEADER_STAMP), subject=infer(lane), msg_id=msg_id, body=delivery.body
        )
        owner = owner_of(lane, stamp)
        prompt: AnyPrompt | None = None
        error: Failure | None = None
        try:
            prompt = parse(delivery.body)
            key = RequestKey(owner, prompt.id)
        except RequestError as reason:
            error = failure(reason.code, reason.message, param=reason.param)
            key = RequestKey(owner, request_id(delivery.body, msg_id, owner, delivery.seq))
        return Task(
            key=key,
            delivery=delivery,
            seal=self._sealer.request(key, delivery.seq),
            prompt=prompt,
            salt=self._tenants.tenant(lane.tenant).salt,
            error=error,
            policy_revision=None if stamp is None else stamp.policy_revision,
        )
