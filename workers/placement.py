"""Placement: which worker computes a prompt, by what its cache holds and by how much it has to do."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from inferflux.broker.broker import Bell, Broker, Delivery, Forwarded, Offer, Subscription
from inferflux.broker.errors import BrokerError, BrokerUnavailable
from inferflux.broker.fairshare import FairShare
from inferflux.broker.subjects import HEADER_PREFIX
from inferflux.broker.wire.fleet import Gossip, Hardware
from inferflux.config.logs import get_logger

from .advance import Advance

log = get_logger("worker.placement")

WAIT_S = 0.005
"""Long enough for the worker that holds a prompt's beginning to hear of it and pull it; short beside a prefill."""

SLACK = 0.5
"""How much more of its slots a worker may have in use than another for the sake of what its cache holds."""

DECIDE_S = 0.05
"""How long an offer may wait for pulls to end; the other worker waits for an answer, and a client for both."""

MAX_PREFIXES = 128
MAX_FORWARD_BYTES = 256 * 1024
PROHIBITED_S = 60.0

Outcome: TypeAlias = Literal["taken", "refused", "unanswered"]
"""What became of a prompt that was offered."""

Accept: TypeAlias = Callable[[Delivery, str | None], None]
"""Takes a prompt; with it another worker that may hold it as well, until claims have decided."""


class Room(NamedTuple):
    """What a worker has of a model: slots, those in use, what it computes on, and how many prompts it is pulling or
    placing, of which each may take a slot."""

    num_slots: int
    num_used: int
    hardware: Hardware
    num_coming: int = 0

    @property
    def num_free(self) -> int:
        return max(0, self.num_slots - self.num_used)

    @property
    def load(self) -> float:
        """Share of the slots in use."""
        return self.num_used / self.num_slots


class Placement:
    """Prompts go to a worker that has computed their beginning before, the others to the one with least to do.

    Bells let the holder of a beginning pull first. But a lane hands its prompts out in order, and two that come at once
    may each get to the other's holder; and of workers with free slots the quickest gets all that comes at once. So who
    has pulled a prompt may offer it to somebody else, who knows best whether it can take it. `room` is None while this
    worker takes nothing.
    """

    def __init__(
        self,
        model: str,
        broker: Broker,
        fair: FairShare,
        advance: Advance,
        *,
        room: Callable[[], Room | None],
        accept: Accept,
    ) -> None:
        self._model = model
        self._broker = broker
        self._fair = fair
        self._advance = advance
        self._room = room
        self._accept = accept
        self._prefixes: dict[str, None] = {}
        self._beliefs: dict[str, tuple[float, int]] = {}
        self._forwards: Subscription | None = None
        self._undecided: dict[int, Forwarded] = {}
        self._prohibited_until_s = 0.0
        self.num_offered: Counter[Outcome] = Counter()

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Beginnings that are cached here."""
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
        self.settle()
        if self._forwards is not None:
            await self._forwards.close()

    def settle(self) -> None:
        """Answer what others offered, as far as it is known how many slots are left; to be called when a pull ended."""
        for forward in tuple(self._undecided.values()):
            self._decide(forward)

    def wait_s(self, bell: Bell) -> float:
        """How long a prompt is left to a worker with room that has its beginning."""
        prefix = bell.headers.get(HEADER_PREFIX)
        if prefix is None or prefix in self._prefixes:
            return 0.0
        peers = self._fair.peers(time.monotonic())
        return WAIT_S if any(peer.num_free_slots and prefix in peer.prefixes for peer in peers) else 0.0

    async def place(self, delivery: Delivery) -> None:
        """Have a prompt that was pulled accepted, here or elsewhere."""
        room = self._room()
        peer = None if room is None else self._better(delivery, room, time.monotonic())
        if room is None or peer is None:
            self._accept(delivery, None)
            return
        num_paid = self._advance.take(delivery.lane)
        outcome = await self._offer(delivery, peer, Offer(self._fair.origin.worker, room.load, num_paid))
        self.num_offered[outcome] += 1
        if outcome != "taken":
            self._advance.put(delivery.lane, num_paid)
            self._accept(delivery, peer.worker if outcome == "unanswered" else None)

    def _better(self, delivery: Delivery, room: Room, now_s: float) -> Gossip | None:
        """Who should rather compute a prompt that was pulled here, as far as gossip tells; None for this worker."""
        # Only what nobody has begun is passed on: then a claim shows which of two workers runs it.
        if delivery.num_delivered > 1 or len(delivery.body) > MAX_FORWARD_BYTES or now_s < self._prohibited_until_s:
            return None
        # A GPU does not leave its prompts to a CPU.
        peers = [
            peer
            for peer in self._fair.peers(now_s)
            if peer.num_slots and peer.num_free_slots and room.hardware in ("cpu", peer.hardware)
        ]
        idlest = min((peer for peer in peers if self._num_free(peer)), key=self._load, default=None)
        if not room.num_free:
            return idlest
        prefix = delivery.headers.get(HEADER_PREFIX)
        if prefix in self._prefixes:
            return idlest if idlest is not None and room.load - self._load(idlest) > SLACK else None
        holder = min((peer for peer in peers if prefix in peer.prefixes), key=_load_told, default=None)
        if holder is not None and _load_told(holder) - room.load <= SLACK:
            return holder
        if idlest is None or self._fair.num_waiting_in_all >= sum(map(self._num_free, peers)):
            # Where as many wait as others have room for, these pull for themselves.
            return None
        # With it the other must have no more to do than this worker has without it, and not only just.
        others = self._load(idlest) + 1 / idlest.num_slots
        return idlest if (room.num_used - room.num_used // 8) / room.num_slots >= others else None

    def _load(self, peer: Gossip) -> float:
        """Share of its slots in use, as far as is known."""
        return 1 - self._num_free(peer) / peer.num_slots

    def _num_free(self, peer: Gossip) -> int:
        """Free slots, as a worker said or as is known since then."""
        said_at, num_free = self._beliefs.get(peer.epoch, (0.0, 0))
        return num_free if said_at == peer.at else peer.num_free_slots

    def _believe(self, peer: Gossip, num_free: int) -> None:
        """Until it says something else."""
        alive = {each.epoch for each in self._fair.peers(time.monotonic())}
        self._beliefs = {epoch: belief for epoch, belief in self._beliefs.items() if epoch in alive}
        self._beliefs[peer.epoch] = (peer.at, max(0, num_free))

    async def _offer(self, delivery: Delivery, peer: Gossip, offer: Offer) -> Outcome:
        self._believe(peer, self._num_free(peer) - 1)
        try:
            if await self._broker.forward(delivery, peer.epoch, offer):
                return "taken"
            outcome: Outcome = "refused"
        except BrokerUnavailable as error:
            log.debug("a forwarded prompt was not answered", to=peer.worker, reason=str(error))
            outcome = "unanswered"
        except BrokerError as error:
            log.warning("prompts cannot be forwarded to other workers", reason=str(error))
            self._prohibited_until_s = time.monotonic() + PROHIBITED_S
            outcome = "refused"
        # Not asked again for the sake of its load before it has spoken.
        self._believe(peer, 0)
        return outcome

    def _on_forward(self, forward: Forwarded) -> None:
        self._undecided[forward.delivery.seq] = forward
        self._decide(forward)
        if forward.delivery.seq in self._undecided:
            asyncio.get_running_loop().call_later(DECIDE_S, self._refuse, forward)

    def _decide(self, forward: Forwarded) -> None:
        """Take a prompt or not, unless only the pulls that are under way can tell whether a slot is left for it."""
        room = self._room()
        if room is None or not self._suits(forward, room):
            self._refuse(forward)
        elif room.num_free > room.num_coming:
            del self._undecided[forward.delivery.seq]
            self._advance.put(forward.delivery.lane, forward.offer.num_paid)
            self._accept(forward.delivery, forward.offer.worker)
            forward.answer(True)

    def _suits(self, forward: Forwarded, room: Room) -> bool:
        """Whether to take a prompt while there is room: one whose beginning is here unless this worker has much more to
        do than the other, who then computes it as well; any other if it leaves this worker with no more to do than the
        other.
        """
        if not room.num_free:
            return False
        if forward.delivery.headers.get(HEADER_PREFIX) in self._prefixes:
            return room.load - forward.offer.load <= SLACK
        return room.load + 1 / room.num_slots <= forward.offer.load

    def _refuse(self, forward: Forwarded) -> None:
        if self._undecided.pop(forward.delivery.seq, None) is not None:
            forward.answer(False)


def _load_told(peer: Gossip) -> float:
    """Share of its slots in use when it gossiped."""
    return 1 - peer.num_free_slots / peer.num_slots
