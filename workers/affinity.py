"""Affinity: prompts that begin alike come to a worker that has computed their beginning before."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from inferflux.broker.broker import Bell, Broker, Delivery, Forwarded, Subscription
from inferflux.broker.errors import BrokerError
from inferflux.broker.fairshare import FairShare
from inferflux.broker.ledger import Origin
from inferflux.broker.subjects import HEADER_PREFIX
from inferflux.broker.wire import Hardware
from inferflux.config.logs import get_logger

log = get_logger("worker.affinity")

WAIT_S = 0.005
"""Long enough for the worker that holds a prompt's beginning to hear of it and pull it; short beside a prefill."""

MAX_WAIT_S = 0.1
MAX_PREFIXES = 128

Outcome: TypeAlias = Literal["taken", "refused", "unanswered"]
"""What became of a prompt that was offered."""

Accept: TypeAlias = Callable[[Delivery, str | None], None]
"""Takes a prompt; with it another worker that may hold it as well, until claims have decided."""


class Room(NamedTuple):
    """What a worker can say of itself when it serves: slots, prompts it holds, and how long its newest step took while
    it computes, else 0."""

    num_slots: int
    num_free: int
    num_waiting: int
    num_running: int
    hardware: Hardware
    step_s: float


class Affinity:
    """Which beginnings are cached here, which are elsewhere, and who computes a prompt that was pulled.

    Bells let the holder pull first. But a lane hands its prompts out in order, and two that come at once may each get
    to the other's worker; so a prompt that was pulled in the wrong place is offered to its holder. `room` is None
    while this worker takes nothing.
    """

    def __init__(
        self,
        model: str,
        broker: Broker,
        fair: FairShare,
        *,
        room: Callable[[], Room | None],
        accept: Accept,
    ) -> None:
        self._model = model
        self._broker = broker
        self._fair = fair
        self._room = room
        self._accept = accept
        self._prefixes: dict[str, None] = {}
        self._forwards: Subscription | None = None
        self.num_offered: Counter[Outcome] = Counter()

    @property
    def prefixes(self) -> tuple[str, ...]:
        return tuple(self._prefixes)

    def remember(self, prefix: str) -> None:
        """This prompt's beginning is about to be computed here, and then cached."""
        self._prefixes.pop(prefix, None)
        self._prefixes[prefix] = None
        if len(self._prefixes) > MAX_PREFIXES:
            del self._prefixes[next(iter(self._prefixes))]

    def forget(self) -> None:
        """No beginning is cached here any more."""
        self._prefixes.clear()

    async def join(self) -> None:
        """Begin to listen for prompts that others pulled."""
        self._forwards = await self._broker.listen_forwards(self._model, self._fair.origin.epoch, self._on_forward)

    async def leave(self) -> None:
        if self._forwards is not None:
            await self._forwards.close()

    def wait_s(self, bell: Bell) -> float:
        """How long a prompt is left to a worker with room that has its beginning. While the engine computes, a step:
        what is pulled meanwhile would wait for its end anyway."""
        prefix = bell.headers.get(HEADER_PREFIX)
        if prefix is None or prefix in self._prefixes or not self._fair.cached_elsewhere(prefix, time.monotonic()):
            return 0.0
        room = self._room()
        return max(WAIT_S, min(MAX_WAIT_S, room.step_s if room is not None else 0.0))

    async def place(self, delivery: Delivery) -> None:
        """Have a prompt that was pulled accepted here or by its holder."""
        prefix = delivery.headers.get(HEADER_PREFIX)
        # Only what nobody has begun is passed on: then a claim shows which of two workers runs it.
        if prefix is None or prefix in self._prefixes or delivery.num_delivered > 1:
            self._accept(delivery, None)
            return
        room = self._room()
        holder = None if room is None else self._fair.holder(prefix, room.hardware, time.monotonic())
        if room is None or holder is None:
            self._accept(delivery, None)
            return
        outcome = await self._offer(delivery, holder, room.num_running)
        self.num_offered[outcome] += 1
        if outcome != "taken":
            self._accept(delivery, holder.worker if outcome == "unanswered" else None)

    async def _offer(self, delivery: Delivery, holder: Origin, num_running: int) -> Outcome:
        try:
            taken = await self._broker.forward(
                delivery, holder.epoch, worker=self._fair.origin.worker, num_running=num_running
            )
        except BrokerError as error:
            log.debug("a forwarded prompt was not answered", to=holder.worker, reason=str(error))
            return "unanswered"
        return "taken" if taken else "refused"

    def _on_forward(self, forward: Forwarded) -> bool:
        """Take it while there is room, and while that does not leave the other worker idle: a beginning that many
        share is worth computing twice."""
        prefix, room = forward.delivery.headers.get(HEADER_PREFIX), self._room()
        if room is None or prefix not in self._prefixes or room.num_waiting or not room.num_free:
            return False
        if room.num_running - forward.num_running > room.num_slots // 2:
            return False
        self._accept(forward.delivery, forward.worker)
        return True
