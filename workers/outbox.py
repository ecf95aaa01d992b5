"""The outbox: frames on their way to the tape, kept until the tape has acknowledged them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from inferflux.broker.broker import Broker
from inferflux.broker.errors import BrokerUnavailable, ClaimLost, MessageTooLarge, TapeFull
from inferflux.broker.subjects import RequestKey
from inferflux.config.logs import get_logger
from inferflux.config.settings import TapeSettings

log = get_logger("worker.outbox")

SWEEP_INTERVAL_S = 0.1


class Outbox:
    """The frames of one attempt. A frame that failed, or was not acknowledged in time, is sent again together with
    all that followed it, so that the order a reader sees has gaps and repetitions but no inversions.

    A frame that is too large for the server is dropped, and `on_refused` is told: the attempt has to end with an error.
    """

    def __init__(
        self,
        broker: Broker,
        key: RequestKey,
        settings: TapeSettings,
        now: Callable[[], float],
        on_refused: Callable[[MessageTooLarge], None],
    ) -> None:
        self._broker = broker
        self._key = key
        self._settings = settings
        self._now = now
        self._on_refused = on_refused
        self._unacked: deque[tuple[bytes, asyncio.Future[int], float]] = deque()

    @property
    def num_unacked(self) -> int:
        return len(self._unacked)

    def send(self, body: bytes) -> None:
        """Publish a frame now and keep it until it is acknowledged."""
        ack = self._broker.send_frame(self._key, body)
        refusal = ack.exception() if ack.done() and not ack.cancelled() else None
        if isinstance(refusal, MessageTooLarge):
            self._on_refused(refusal)
        else:
            self._unacked.append((body, ack, self._now()))

    def sweep(self) -> None:
        """Forget what was acknowledged; send again from the first frame that was not. Called every 100 ms."""
        unacked = self._unacked
        while unacked and _stored(unacked[0][1]):
            unacked.popleft()
        if not unacked:
            return
        _, ack, sent_s = unacked[0]
        if ack.done() or self._now() - sent_s > self._settings.ack_timeout_s:
            log.warning("frames resent", request=self._key.request, num_frames=len(unacked))
            again = [body for body, _, _ in unacked]
            unacked.clear()
            for body in again:
                self.send(body)

    async def finish(self, body: bytes, *, fence: int) -> int:
        """Store the terminal frame after everything before it. Raises ClaimLost when the attempt is no longer ours,
        MessageTooLarge when the server will never take the frame.

        Broker trouble is waited out: only the claim decides whether this attempt may end the request.
        """
        await self.drain()
        while True:
            try:
                return await self._broker.put_terminal(self._key, body, fence=fence)
            except ClaimLost:
                raise
            except (BrokerUnavailable, TapeFull) as error:
                log.warning("terminal frame delayed", request=self._key.request, reason=str(error))
                await asyncio.sleep(SWEEP_INTERVAL_S)

    async def drain(self) -> None:
        """Return once every frame sent so far is on the tape."""
        while True:
            self.sweep()
            if not self._unacked:
                return
            newest = self._unacked[-1][1]
            if not newest.done():
                await asyncio.wait([newest], timeout=SWEEP_INTERVAL_S)
            if self._unacked and not _stored(self._unacked[0][1]):
                # It was refused, or is still on its way: sending again now would only spin.
                await asyncio.sleep(SWEEP_INTERVAL_S)


def _stored(ack: asyncio.Future[int]) -> bool:
    return ack.done() and not ack.cancelled() and ack.exception() is None
