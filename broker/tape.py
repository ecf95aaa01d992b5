"""The tape: claims by compare-and-set, fenced terminal frames, and reading back what was generated."""

from __future__ import annotations

import asyncio
import time

from . import subjects
from .broker import Tape, TapeEntry
from .direct import DirectReads, sequence
from .errors import BrokerUnavailable, ClaimLost, TapeFull
from .jetstream_api import (
    ERR_INSUFFICIENT_RESOURCES,
    RETRY_PAUSE_S,
    ApiError,
    JetStreamApi,
    WrongSequence,
)
from .link import Link
from .subjects import STREAM_TAPE, RequestKey
from .wire.base import encode
from .wire.requests import Claim, Head, decode_claim, decode_head


class TapeStream:
    """Everything on the tape but the hot path. Claims and ends of tapes are read from the leader: another replica
    may lag, and would hide a terminal frame from the next attempt."""

    def __init__(self, link: Link, js: JetStreamApi) -> None:
        self._js = js
        self._reads = DirectReads(link, STREAM_TAPE)

    async def open(self) -> None:
        await self._reads.open()

    async def put_claim(self, key: RequestKey, claim: Claim, *, expected_seq: int) -> int:
        headers = {subjects.HEADER_EXPECTED_SUBJECT_SEQ: str(expected_seq)}
        return await self._put(subjects.claim(key), encode(claim), headers, "the claim")

    async def read_head(self, key: RequestKey) -> Head | None:
        stored = await self._js.stored(STREAM_TAPE, last_by_subj=subjects.head(key))
        return None if stored is None else decode_head(stored.data)

    async def put_terminal(self, key: RequestKey, body: bytes, *, fence: int) -> int:
        headers = {
            subjects.HEADER_EXPECTED_SUBJECT_SEQ: str(fence),
            subjects.HEADER_EXPECTED_SUBJECT: subjects.claim(key),
            # One terminal frame for each claim, whoever writes it: the canceller, or a worker that found it dead.
            subjects.HEADER_MSG_ID: f"{subjects.claim(key)}.{fence}",
        }
        return await self._put(subjects.frame(key), body, headers, "the terminal frame's claim")

    async def last_claim(self, key: RequestKey) -> tuple[int, Claim] | None:
        stored = await self._js.stored(STREAM_TAPE, last_by_subj=subjects.claim(key))
        return None if stored is None else (stored.seq, decode_claim(stored.data))

    async def claims(self, key: RequestKey) -> tuple[Claim, ...]:
        """Every claim that is still stored, oldest first."""
        subject = subjects.claim(key)
        last = await self._js.stored(STREAM_TAPE, last_by_subj=subject)
        if last is None:
            return ()
        return tuple(decode_claim(entry.body) for entry in await self._read_until(subject, 0, last.seq))

    async def read(self, key: RequestKey, after_seq: int) -> Tape:
        """The newest claim, and every frame after `after_seq`."""
        subject = subjects.frame(key)
        last, claimed = await asyncio.gather(self._js.stored(STREAM_TAPE, last_by_subj=subject), self.last_claim(key))
        frames: list[TapeEntry] = []
        if last is not None and last.seq > after_seq:
            frames = await self._read_until(subject, after_seq, last.seq)
        claim_seq, claim = claimed if claimed is not None else (0, None)
        return Tape(claim, claim_seq, tuple(frames))

    async def purge(self, key: RequestKey) -> None:
        await self._js.call("STREAM", "PURGE", STREAM_TAPE, body={"filter": subjects.tape_filter(key)})

    async def fill(self) -> float:
        info = await self._js.call("STREAM", "INFO", STREAM_TAPE)
        return float(info["state"]["bytes"]) / float(info["config"]["max_bytes"])

    async def _put(self, subject: str, body: bytes, headers: dict[str, str], what: str) -> int:
        try:
            return await self._js.put(STREAM_TAPE, subject, body, headers)
        except WrongSequence as error:
            raise ClaimLost(f"{what} is not the newest", actual_seq=error.actual_seq) from error
        except ApiError as error:
            if "maximum bytes exceeded" in error.description or error.err_code in ERR_INSUFFICIENT_RESOURCES:
                raise TapeFull("the tape has no room") from error
            raise

    async def _read_until(self, subject: str, after_seq: int, last_seq: int) -> list[TapeEntry]:
        frames: list[TapeEntry] = []
        deadline = time.monotonic() + self._js.timeout_s
        while True:
            start = frames[-1].seq if frames else after_seq
            batch = await self._reads.batch(subject, start + 1, deadline - time.monotonic())
            frames += [TapeEntry(sequence(packet), packet.data) for packet in batch]
            if frames and frames[-1].seq >= last_seq:
                return frames
            if not batch:
                if await self._js.stored(STREAM_TAPE, seq=last_seq) is None:
                    return frames  # purged meanwhile
                if time.monotonic() + RETRY_PAUSE_S > deadline:
                    raise BrokerUnavailable("no replica has the whole tape")
                await asyncio.sleep(RETRY_PAUSE_S)
