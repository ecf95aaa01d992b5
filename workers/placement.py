"""Placement: which worker computes a prompt, by what its cache holds and by how much it has to do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, TypeAlias

from inferflux.broker.broker import Bell, Broker, Delivery, Forwarded, Subscription
from inferflux.broker.errors import BrokerError
from inferflux.broker.fairshare import FairShare
from inferflux.broker.subjects import HEADER_PREFIX
from inferflux.broker.wire import Gossip, Hardware
from inferflux.config.logs import get_logger

log = get_logger("worker.placement")

WAIT_S = 0.005
"""Long enough for the worker that holds a prompt's beginning to hear of it and pull it; short beside a prefill."""

MAX_PREFIXES = 128

Outcome: TypeAlias = Literal["taken", "refused", "unanswered"]
"""What became of a prompt that was offered."""

Accept: TypeAlias = Callable[[Delivery, str | None], None]
"""Takes a prompt; with it another worker that may hold it as well, until claims have decided."""


class Room(NamedTuple):
    """What a worker has of a model: slots, free ones, sequences that wait for one, and prompts that it holds."""

    num_slots: int
    num_free: int
    num_waiting: int
    num_running: int
    hardware: Hardware


class Placement:
    """Prompts go to a worker that has computed their beginning before, the others to the one with least to do.

    Bells let the holder of a beginning pull first. But a lane hands its prompts out in order, and two that come at once
    may each get to the other's holder; and of workers with free slots the quickest gets all that comes at once. So who
    has pulled a prompt may offer it to somebody else, who knows best whether it can take it. `room` is None while this
    worker takes nothing.
    """

    def __init__(
        self, model: str, broker: Broker, fair: FairShare, *, room: Callable[[], Room | None], accept: Accept
    ) -> None:
        self._model = model
        self._broker = broker
        self._fair = fair
        self._room = room
        self._accept = accept
        self._prefixes: dict[str, None] = {}
        self._beliefs: dict[str, tuple[float, int]] = {}
        self._forwards: Subscription | None = None
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
        if self._forwards is not None:
            await self._forwards.close()

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
        peer = None if room is None else self._better(delivery, room)
        if room is None or peer is None:
            self._accept(delivery, None)
            return
        self._believe(peer, self._load(peer) + 1)
        outcome = await self._offer(delivery, peer, room.num_running)
        self.num_offered[outcome] += 1
        if outcome != "taken":
            self._believe(peer, max(self._load(peer) - 1, room.num_running))
            self._accept(delivery, peer.worker if outcome == "unanswered" else None)

    def _better(self, delivery: Delivery, room: Room) -> Gossip | None:
        """Who should rather compute a prompt that was pulled here, as far as gossip tells; None for this worker."""
        # Only what nobody has begun is passed on: then a claim shows which of two workers runs it.
        if delivery.num_delivered > 1:
            return None
        # A GPU does not leave its prompts to a CPU.
        peers = [each for each in self._fair.peers(time.monotonic()) if room.hardware in ("cpu", each.hardware)]
        prefix = delivery.headers.get(HEADER_PREFIX)
        is_held = prefix in self._prefixes
        holder = None if is_held else self._idlest(each for each in peers if prefix in each.prefixes)
        if holder is not None and self._load(holder) - room.num_running <= _slack(room):
            return holder
        slack = _slack(room) if is_held else 0
        idlest = self._idlest(each for each in peers if each.num_free_slots)
        return idlest if idlest is not None and room.num_running - self._load(idlest) > slack else None

    def _idlest(self, peers: Iterable[Gossip]) -> Gossip | None:
        return min(peers, key=self._load, default=None)

    def _load(self, peer: Gossip) -> int:
        """Prompts that a worker holds: as it said, or as is known since then."""
        said_at, num_running = self._beliefs.get(peer.epoch, (0.0, 0))
        return num_running if said_at == peer.at else sum(each.num_running for each in peer.running)

    def _believe(self, peer: Gossip, num_running: int) -> None:
        """Until it says something else."""
        alive = {each.epoch for each in self._fair.peers(time.monotonic())}
        self._beliefs = {epoch: belief for epoch, belief in self._beliefs.items() if epoch in alive}
        self._beliefs[peer.epoch] = (peer.at, num_running)

    async def _offer(self, delivery: Delivery, peer: Gossip, num_running: int) -> Outcome:
        try:
            taken = await self._broker.forward(
                delivery, peer.epoch, worker=self._fair.origin.worker, num_running=num_running
            )
        except BrokerError as error:
            log.debug("a forwarded prompt was not answered", to=peer.worker, reason=str(error))
            return "unanswered"
        return "taken" if taken else "refused"

    def _on_forward(self, forward: Forwarded) -> bool:
        """Take a prompt while there is room: one whose beginning is here unless this worker has much more to do than
        the other, who then computes it as well; any other if this one has less to do."""
        room = self._room()
        if room is None or room.num_waiting or not room.num_free:
            return False
        more = room.num_running - forward.num_running
        if more >= 0 and (forward.delivery.headers.get(HEADER_PREFIX) not in self._prefixes or more > _slack(room)):
            return False
        self._accept(forward.delivery, forward.worker)
        return True


def _slack(room: Room) -> int:
    """How many prompts more a worker may hold than another for the sake of what its cache holds."""
    return room.num_slots // 2
