"""The readers: who reads which request here, and what becomes of it when the last one goes."""

from __future__ import annotations

from collections import Counter

from inferflux.broker.subjects import RequestKey

from .exchange import Exchange
from .idempotency import may_pass
from .patience import Patience
from .presence import Presence
from .relay import Relay
from .replies import ReplyStream
from .vigil import Vigil


class Readers:
    """Opens streams to read, and tells the vigil, or the other replicas, who has come and gone."""

    def __init__(self, owner: str, relay: Relay, presence: Presence, vigil: Vigil, patience: Patience) -> None:
        self.relay = relay
        self.vigil = vigil
        self.patience = patience
        self._owner = owner
        self._presence = presence
        self._readers: Counter[RequestKey] = Counter()

    async def follow(self, key: RequestKey, seen_seq: int = 0) -> ReplyStream:
        """Read a request that was accepted earlier. Raises BrokerError."""
        foreign = key.owner != self._owner
        try:
            if foreign:
                await self._presence.read(key)
            return await self.relay.follow(key, seen_seq=seen_seq)
        except BaseException:
            if foreign:
                self._presence.leave(key)
            raise

    def opened(self, key: RequestKey) -> None:
        self._readers[key] += 1
        self.vigil.begin(key)

    def closed(self, exchange: Exchange, *, draining: bool) -> None:
        """A request's last reader decides what becomes of it."""
        key = exchange.ticket.key
        self.relay.forget(exchange.stream)
        if exchange.ticket.resumable and exchange.failure is not None and may_pass(exchange.failure):
            self.vigil.fail(key)
        self._readers[key] -= 1
        num_left = self._readers[key]
        if not num_left:
            del self._readers[key]
            self.vigil.end(key)
        if key.owner != self._owner:
            self._presence.leave(key)
        elif not num_left and not exchange.over and not (draining and exchange.ticket.resumable):
            self.vigil.leave(exchange.order, resumable=exchange.ticket.resumable)
