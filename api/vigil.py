"""The vigil: requests that nobody reads go on for a grace, and then are cancelled.

A replica watches over its own. When it is gone, every other one does in its place; the cancelling claim is a
compare-and-set, so several may try.
"""

from __future__ import annotations

import time
from functools import partial

from inferflux.broker.broker import Broker
from inferflux.broker.errors import Code
from inferflux.broker.subjects import OWNER_API, RequestKey, encode_token, key_id
from inferflux.broker.wire.requests import failure
from inferflux.config.logs import get_logger

from .cancel import Canceller, Order
from .idempotency import failed, free
from .presence import Presence
from .pressure import Pressure
from .rounds import Rounds

log = get_logger("api.vigil")

SHORTEST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
UNREAD = failure(Code.CANCELLED, "nobody came back to read the answer")


class Vigil:
    """`look` does one round; `rounds` repeats it."""

    def __init__(
        self, broker: Broker, owner: str, canceller: Canceller, presence: Presence, pressure: Pressure, grace_s: float
    ) -> None:
        self._broker = broker
        self._owner = owner
        self._canceller = canceller
        self._presence = presence
        self._pressure = pressure
        self._grace_s = grace_s
        self._here: set[RequestKey] = set()
        self._left: dict[RequestKey, Order] = {}
        self._unread_s: dict[RequestKey, float] = {}
        self._settled: set[RequestKey] = set()
        interval_s = min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, grace_s / 4))
        self.rounds = Rounds("vigil", lambda: self.look(time.monotonic()), interval_s)

    @property
    def num_left(self) -> int:
        """Requests of this replica that nobody reads here."""
        return len(self._left)

    def leave(self, order: Order, *, resumable: bool) -> None:
        """The last reader of an own request has gone: cancel it now, or after the grace where somebody may come back
        or reads it elsewhere."""
        if resumable:
            self._wait(order)
        else:
            self._canceller.start(order, partial(self._wait_if_read, order))

    def begin(self, key: RequestKey) -> None:
        """Somebody reads this request here."""
        self._here.add(key)
        self._forget(key)

    def end(self, key: RequestKey) -> None:
        """Nobody reads it here any more."""
        self._here.discard(key)

    def fail(self, key: RequestKey) -> None:
        """It was read here that this request has failed, and that trying again may cure it."""
        self._canceller.free(key)

    async def look(self, now_s: float) -> None:
        """End what has been unread for the grace. Raises BrokerError."""
        owners, read = await self._presence.look()
        own = encode_token(self._owner)
        self._pressure.num_replicas = max(1, len(owners | {own}))
        orphans = dict(self._left)
        if self._presence.certain:
            for key in await self._broker.heads():
                owner = encode_token(key.owner)
                if key.owner.startswith(OWNER_API) and owner != own and owner not in owners:
                    orphans[key] = Order(key, None, UNREAD)
        self._settled &= orphans.keys()
        self._unread_s = {key: since_s for key, since_s in self._unread_s.items() if key in orphans}
        for key, order in orphans.items():
            if key in self._settled or key in self._here:
                continue
            if key_id(key) in read:
                self._unread_s[key] = now_s
            elif now_s - self._unread_s.setdefault(key, now_s) >= self._grace_s:
                await self._end(order)
                self._settled.add(key)
                self._forget(key)

    async def _end(self, order: Order) -> None:
        head = await self._broker.read_head(order.key)
        prompt_seq = order.prompt_seq if head is None else head.prompt
        tape = await self._broker.read_tape(order.key)
        if tape.end is not None:
            if failed(tape):
                await free(self._broker, order.key)
            return
        if tape.claim is None and prompt_seq is not None and await self._broker.read_prompt(prompt_seq) is None:
            return
        if await self._canceller.cancel(Order(order.key, prompt_seq, UNREAD)):
            log.info("cancelled unread", request=order.key.request, owner=order.key.owner)

    def _forget(self, key: RequestKey) -> None:
        self._left.pop(key, None)
        self._unread_s.pop(key, None)

    def _wait(self, order: Order) -> None:
        self._left[order.key] = order
        self._unread_s.pop(order.key, None)

    async def _wait_if_read(self, order: Order) -> bool:
        read = await self._presence.is_read(order.key)
        if order.key in self._here:
            return True
        if read:
            self._wait(order)
        return read
