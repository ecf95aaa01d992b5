"""The other workers of a model, as their gossip shows them: who is alive, has room, and has told all it knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from .ledger import Account, Origin
from .wire.fleet import Gossip

_SILENT = 3
_JOINING = 6
_JOINING_AT_MOST = 600
"""In gossip intervals: after how much silence a worker counts as gone, and how long a newcomer listens before its own
view counts as whole, at least and at most. Listening outlasts silence, so that somebody speaks for those just gone."""


class Peer(msgspec.Struct):
    """The newest gossip of one worker epoch, and when it was heard on the own clock."""

    gossip: Gossip
    heard_s: float
    answered: float | None = None
    silent: bool = False


class Roster:
    """Worker epochs heard of lately, the own one left out."""

    def __init__(self, origin: Origin, interval_s: float, share_window_s: float) -> None:
        self._origin = origin
        self._interval_s = interval_s
        self._share_window_s = share_window_s
        self._peers: dict[Origin, Peer] = {}
        self._asks: float | None = None
        self._joined = False
        self._alone = True

    def hear(self, gossip: Gossip, now_s: float) -> bool:
        """Note a message; whether its sender asks for something that was not answered yet."""
        origin = Origin(gossip.worker, gossip.epoch)
        self._alone = False
        peer = self._peers.get(origin)
        if peer is None:
            peer = self._peers[origin] = Peer(gossip, now_s)
        elif gossip.at > peer.gossip.at:
            peer.gossip = gossip
            peer.heard_s = now_s
            peer.silent = False
        if gossip.asks is None or (peer.answered is not None and gossip.asks <= peer.answered):
            return False
        peer.answered = gossip.asks
        return True

    def ask(self, now_s: float) -> None:
        """Ask everybody for all they know: on start, and after having been away."""
        self._asks = now_s
        self._joined = False

    def asking(self, now_s: float) -> float | None:
        """Since when this worker has been asking; None when it has been answered. The first call starts it."""
        if self._asks is None:
            self.ask(now_s)
        return None if self.joined(now_s) else self._asks

    def joined(self, now_s: float) -> bool:
        """Whether the others have sent what they owed, or have had ample time for it."""
        if self._joined or self._asks is None:
            return self._joined
        waited = (now_s - self._asks) / self._interval_s
        owed = any(peer.gossip.num_owed for peer in self._alive(now_s))
        self._joined = waited >= _JOINING_AT_MOST or (waited >= _JOINING and not owed)
        return self._joined

    def has_company(self, now_s: float) -> bool:
        """Whether somebody else is there, or may be: a newcomer has yet to hear."""
        return not self.joined(now_s) or any(True for _ in self._alive(now_s))

    def whole(self, now_s: float) -> bool:
        """Whether the own view is as good as anybody's, which it also is while nobody else was ever heard."""
        return self._alone or self.joined(now_s)

    def speaks_for_gone(self, now_s: float) -> bool:
        """Whether it falls to this worker to tell what the gone have served: to the first whose view is whole."""
        whole = [Origin(p.gossip.worker, p.gossip.epoch) for p in self._alive(now_s) if p.gossip.asks is None]
        if not self.joined(now_s):
            return not whole
        return all(self._origin < origin for origin in whole)

    def fell_silent(self, now_s: float) -> list[Origin]:
        """Those that have fallen silent since the last call."""
        silent: list[Origin] = []
        for origin, peer in list(self._peers.items()):
            age_s = now_s - peer.heard_s
            if not peer.silent and age_s > _SILENT * self._interval_s:
                peer.silent = True
                silent.append(origin)
            elif peer.silent and age_s > self._share_window_s:
                del self._peers[origin]
        return silent

    def is_gone(self, origin: Origin) -> bool:
        """Whether nobody speaks for this epoch itself, as of the last `fell_silent`."""
        peer = self._peers.get(origin)
        return origin != self._origin and (peer is None or peer.silent)

    def free_slots(self, now_s: float) -> int:
        return sum(peer.gossip.num_free_slots for peer in self._alive(now_s))

    def free_gpu_slots(self, now_s: float) -> int:
        return sum(peer.gossip.num_free_slots for peer in self._alive(now_s) if peer.gossip.hardware == "gpu")

    def running(self, now_s: float) -> Counter[Account]:
        """Prompts that the others hold, by lane."""
        held: Counter[Account] = Counter()
        for peer in self._alive(now_s):
            for lane in peer.gossip.running:
                held[(lane.service_class, lane.tenant)] += lane.num_running
        return held

    def gossips(self, now_s: float) -> list[Gossip]:
        """The newest message of each that is alive."""
        return [peer.gossip for peer in self._alive(now_s)]

    def recent(self, service_class: str, now_s: float) -> float:
        """Weighted tokens that the others served to a class in the last share window."""
        return sum(
            peer.gossip.recent.get(service_class, 0.0)
            for peer in self._peers.values()
            if now_s - peer.heard_s <= self._share_window_s
        )

    def _alive(self, now_s: float) -> Iterator[Peer]:
        return (peer for peer in self._peers.values() if now_s - peer.heard_s <= _SILENT * self._interval_s)
