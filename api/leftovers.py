"""Leftover tapes: those that were to be purged by a process which ended before the time had come."""

from __future__ import annotations

import time

import msgspec

from inferflux.broker.broker import Broker
from inferflux.broker.subjects import RequestKey
from inferflux.config.logs import get_logger

from .rounds import Rounds

log = get_logger("api.leftovers")

MAX_LOOKED = 200
"""Tapes read in one round; what is left is read in the next."""


class _Seen(msgspec.Struct):
    """Since when a tape has been there, up to where it was read, and since when it is known to have ended."""

    since_s: float
    read_seq: int = 0
    ended_s: float | None = None


class Leftovers:
    """Workers and replicas purge a tape one window after its request has ended, by timers that end with them. So every
    replica looks through the tape once a window, for what is still there two windows after it was first seen, and
    purges it once it has been seen ended for a window. `look` does one round; `rounds` repeats it."""

    def __init__(self, broker: Broker, window_s: float) -> None:
        self._broker = broker
        self._window_s = window_s
        self._seen: dict[RequestKey, _Seen] = {}
        self.rounds = Rounds("leftovers", lambda: self.look(time.monotonic()), window_s)

    async def look(self, now_s: float) -> int:
        """How many tapes were purged. Raises BrokerError."""
        self._seen = {key: self._seen.get(key) or _Seen(now_s) for key in await self._broker.claimed()}
        old = [(key, seen) for key, seen in self._seen.items() if now_s - seen.since_s >= 2 * self._window_s]
        num_purged = 0
        for key, seen in old[:MAX_LOOKED]:
            if seen.ended_s is None:
                await self._read(key, seen, now_s)
            elif now_s - seen.ended_s >= self._window_s:
                await self._broker.purge_tape(key)
                num_purged += 1
        if num_purged:
            log.info("leftover tapes purged", num_tapes=num_purged)
        return num_purged

    async def _read(self, key: RequestKey, seen: _Seen, now_s: float) -> None:
        tape = await self._broker.read_tape(key, after_seq=seen.read_seq)
        if tape.end is not None:
            # Whoever pulls a prompt that is still stored must find its end; where none is named, the tape expires.
            prompt_seq = tape.claim.prompt if tape.claim is not None else 0
            if prompt_seq and await self._broker.read_prompt(prompt_seq) is None:
                seen.ended_s = now_s
                return
        elif tape.frames:
            seen.read_seq = tape.frames[-1].seq
        seen.since_s = now_s - self._window_s
