"""From a delivery to a task: whose it is, what it asks, and whether anybody vouches for it."""

from __future__ import annotations

from inferflux.broker.broker import Delivery
from inferflux.broker.errors import RequestError
from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import HEADER_MSG_ID, HEADER_STAMP, OWNER_TENANT, RequestKey, infer, tenant_owner
from inferflux.broker.wire import AnyPrompt, Failure, failure
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
        owner = stamp.owner if stamp else tenant_owner(lane.tenant)
        prompt: AnyPrompt | None = None
        error: Failure | None = None
        try:
            prompt = parse(delivery.body)
            key = RequestKey(owner, prompt.id)
        except RequestError as reason:
            error = failure(reason.code, reason.message, param=reason.param)
            key = RequestKey(owner, self._fallback_id(msg_id, owner, delivery.seq))
        return Task(
            key=key,
            delivery=delivery,
            seal=self._sealer.request(key, delivery.seq),
            prompt=prompt,
            salt=self._tenants.tenant(lane.tenant).salt,
            error=error,
        )

    @staticmethod
    def _fallback_id(msg_id: str, owner: str, seq: int) -> str:
        """For a body without a readable id: the message id where there is one, else the sequence in the stream."""
        if msg_id and owner.startswith(OWNER_TENANT):
            return msg_id.removeprefix(f"{owner}.")[:128]
        return msg_id[:128] or f"seq-{seq}"
