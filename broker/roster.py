"""The other workers of a model, as their gossip shows them: who is alive, has room, and has told all it knows."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .ledger import Origin
from .wire import Gossip

_FRESH = 3
_JOINING = 5
_JOINING_AT_MOST = 50
_GONE = 50
"""In gossip intervals: how old a slot count may be, how long a newcomer listens before its view counts as whole, at
least and at most, and after how much silence a worker is taken for dead."""


class Peer(msgspec.Struct):
    """The newest gossip of one worker epoch, and when it was heard on the own clock."""

    gossip: Gossip
    heard_s: float
    answered: float = 0.0


class Roster:
    """Worker epochs heard of lately, the own one left out."""

    def __init__(self, origin: Origin, interval_s: float, share_window_s: float) -> None:
        self._origin = origin
        self._interval_s = interval_s
        self._share_window_s = share_window_s
        self._peers: dict[Origin, Peer] = {}
        self._asks: float | None = None
        self._joined = False

    def hear(self, gossip: Gossip, now_s: float) -> bool:
        """Note a message; whether its sender asks for something that was not answered yet."""
        origin = Origin(gossip.worker, gossip.epoch)
        if origin == self._origin:
            return False
        peer = self._peers.get(origin)
        if peer is None:
            peer = self._peers[origin] = Peer(gossip, now_s)
        elif gossip.at > peer.gossip.at:
            peer.gossip = gossip
            peer.heard_s = now_s
        if gossip.asks <= peer.answered:
            return False
        peer.answered = gossip.asks
        return True

    def ask(self, now_s: float) -> None:
        """Ask everybody for all they know: on start, and after having been away."""
        self._asks = now_s
        self._joined = False

    def asking(self, now_s: float) -> float:
        """Since when this worker has been asking; 0 when it has been answered. The first call starts it."""
        if self._asks is None:
            self.ask(now_s)
        return 0.0 if self.joined(now_s) or self._asks is None else self._asks

    def joined(self, now_s: float) -> bool:
        """Whether the others have sent what they owed, or have had ample time for it."""
        if self._joined or self._asks is None:
            return self._joined
        waited = (now_s - self._asks) / self._interval_s
        owed = any(peer.gossip.num_owed for peer in self._alive(now_s))
        self._joined = waited >= _JOINING_AT_MOST or (waited >= _JOINING and not owed)
        return self._joined

    def whole(self, now_s: float) -> bool:
        """Whether the own view is as good as anybody's, which it also is while nobody else was ever heard."""
        return not self._peers or self.joined(now_s)

    def looks_after_gone(self, now_s: float) -> bool:
        """Whether it falls to this worker to speak for the dead: to the first one whose own view is whole."""
        whole = [Origin(p.gossip.worker, p.gossip.epoch) for p in self._alive(now_s) if not p.gossip.asks]
        if not self.joined(now_s):
            return not whole
        return all(self._origin < origin for origin in whole)

    def drop_gone(self, now_s: float) -> list[Origin]:
        """Forget the workers that have fallen silent; returns them."""
        gone = [o for o, peer in self._peers.items() if now_s - peer.heard_s > self._gone_s()]
        for origin in gone:
            del self._peers[origin]
        return gone

    def is_known(self, origin: Origin) -> bool:
        return origin == self._origin or origin in self._peers

    def free_gpu_slots(self, now_s: float) -> int:
        return sum(
            peer.gossip.num_free_slots
            for peer in self._peers.values()
            if peer.gossip.hardware == "gpu" and now_s - peer.heard_s <= _FRESH * self._interval_s
        )

    def recent(self, service_class: str, now_s: float) -> float:
        """Weighted tokens that the others served to a class in the last share window."""
        return sum(
            peer.gossip.recent.get(service_class, 0.0)
            for peer in self._peers.values()
            if now_s - peer.heard_s <= self._share_window_s
        )

    def _alive(self, now_s: float) -> Iterator[Peer]:
        return (peer for peer in self._peers.values() if now_s - peer.heard_s <= self._gone_s())

    def _gone_s(self) -> float:
        return max(_GONE * self._interval_s, self._share_window_s)
