"""A request's claims: who works on it, by compare-and-set, through trouble with the broker."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from inferflux.broker.broker import Broker
from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.subjects import RequestKey
from inferflux.broker.wire.requests import Claim

RETRY_S = 0.2


class Claims:
    """The claims of one request as one worker writes and reads them; waits out an unavailable broker.

    `prompt_seq` is the claimed prompt's sequence in its stream.
    """

    def __init__(self, broker: Broker, key: RequestKey, worker: str, prompt_seq: int) -> None:
        self._broker = broker
        self._key = key
        self._worker = worker
        self._prompt_seq = prompt_seq

    async def put(
        self, state: Literal["running", "released", "cancelled"], *, expected_seq: int, num_attempts: int
    ) -> int:
        """The claim's sequence. Raises ClaimLost. Where an acknowledgement got lost, finds out what became of it."""
        claim = Claim(
            worker=self._worker, state=state, prompt=self._prompt_seq, num_attempts=num_attempts, at=time.time()
        )
        while True:
            try:
                return await self._broker.put_claim(self._key, claim, expected_seq=expected_seq)
            except BrokerUnavailable:
                await asyncio.sleep(RETRY_S)
                last = await self.last()
                if last is not None and last[1] == claim:
                    return last[0]

    async def last(self) -> tuple[int, Claim] | None:
        """The newest claim and its sequence."""
        while True:
            try:
                return await self._broker.last_claim(self._key)
            except BrokerUnavailable:
                await asyncio.sleep(RETRY_S)
