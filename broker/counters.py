"""Counters: whole numbers of any size that many processes add to, each addition once; in JetStream and in memory."""

from __future__ import annotations

import secrets
import time

import msgspec

from . import subjects
from .direct import DirectReads, sequence
from .jetstream_api import JetStreamApi
from .link import Link
from .subjects import STREAM_LIMITS, STREAM_USAGE, Counter, Series


class _Stored(msgspec.Struct):
    val: str


class StreamCounters:
    """JetStream's counters: the stream adds, and its answer carries the sum."""

    def __init__(self, link: Link, js: JetStreamApi) -> None:
        self._js = js
        self._reads = {name: DirectReads(link, name) for name in (STREAM_LIMITS, STREAM_USAGE)}

    async def open(self) -> None:
        for reads in self._reads.values():
            await reads.open()

    async def count(self, counter: Counter, add: int, msg_id: str | None) -> int | None:
        headers = {
            subjects.HEADER_INCREMENT: f"{add:+d}",
            subjects.HEADER_MSG_ID: msg_id or secrets.token_hex(12),
        }
        ack = await self._js.publish(subjects.counter(counter), b"", headers)
        if not ack.duplicate:
            return ack.value
        if msg_id is not None:
            return None
        # It was a second try, after an answer that was lost. Others may have counted since, and only where the stream
        # has let go of what was stored then is theirs counted, too.
        stream = subjects.counter_stream(counter.series)
        first = await self._js.stored(stream, seq=ack.seq)
        return await self.value(counter) if first is None else _value(first.data)

    async def value(self, counter: Counter) -> int:
        """Read from the stream's leader, and so never stale."""
        stream = subjects.counter_stream(counter.series)
        stored = await self._js.stored(stream, last_by_subj=subjects.counter(counter))
        return 0 if stored is None else _value(stored.data)

    async def matching(self, series: Series, parts: tuple[str | None, ...]) -> dict[Counter, int]:
        reads = self._reads[subjects.counter_stream(series)]
        wanted, after_seq = subjects.counter_filter(series, parts), 0
        deadline = time.monotonic() + self._js.timeout_s
        found: dict[Counter, int] = {}
        while batch := await reads.batch(wanted, after_seq + 1, deadline - time.monotonic()):
            for packet in batch:
                found[subjects.parse_counter(packet.header(subjects.HEADER_SUBJECT) or "")] = _value(packet.data)
            after_seq = sequence(batch[-1])
        return found


class MemoryCounters:
    """The same in one process. Message ids are kept for ever."""

    def __init__(self) -> None:
        self._values: dict[Counter, int] = {}
        self._message_ids: set[tuple[str, str]] = set()

    def count(self, counter: Counter, add: int, msg_id: str | None) -> int | None:
        if msg_id is not None:
            ident = (subjects.counter_stream(counter.series), msg_id)
            if ident in self._message_ids:
                return None
            self._message_ids.add(ident)
        self._values[counter] = self.value(counter) + add
        return self._values[counter]

    def value(self, counter: Counter) -> int:
        return self._values.get(counter, 0)

    def matching(self, series: Series, parts: tuple[str | None, ...]) -> dict[Counter, int]:
        return {
            counter: value
            for counter, value in self._values.items()
            if counter.series is series
            and all(wanted in (None, part) for wanted, part in zip(parts, counter.parts, strict=True))
        }


def _value(data: bytes) -> int:
    return int(msgspec.json.decode(data, type=_Stored).val)
