"""The tape in memory: claims by compare-and-set, fenced terminal frames, a byte limit."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from inferflux.config.settings import TapeSettings

from . import subjects
from .broker import Reply, Tape, TapeEntry
from .errors import ClaimLost, TapeFull
from .subjects import RequestKey
from .wire.base import encode
from .wire.requests import Claim, Head, decode_claim, decode_head

# What the server adds to every message that it keeps in memory.
OVERHEAD_BYTES = 16


class _Record(msgspec.Struct, frozen=True):
    seq: int
    body: bytes
    stored_s: float
    size: int


class _Request(msgspec.Struct):
    heads: list[_Record] = msgspec.field(default_factory=list)
    claims: list[_Record] = msgspec.field(default_factory=list)
    frames: list[_Record] = msgspec.field(default_factory=list)
    terminals: dict[int, int] = msgspec.field(default_factory=dict)


class MemoryTape:
    """What the stream TAPE does."""

    def __init__(self, clock: Callable[[], float], settings: TapeSettings, announce: Callable[[Reply], None]) -> None:
        self._clock = clock
        self._settings = settings
        self._announce = announce
        self._requests: dict[RequestKey, _Request] = {}
        self._last_seq = 0
        self._num_bytes = 0

    @property
    def fill(self) -> float:
        self._expire()
        return self._num_bytes / self._settings.max_bytes

    def put_head(self, key: RequestKey, head: Head) -> int:
        record = self._store(subjects.head(key), encode(head))
        self._requests.setdefault(key, _Request()).heads.append(record)
        return record.seq

    def head(self, key: RequestKey) -> Head | None:
        self._expire()
        request = self._requests.get(key)
        return decode_head(request.heads[-1].body) if request is not None and request.heads else None

    def heads(self) -> list[RequestKey]:
        self._expire()
        return [key for key, request in self._requests.items() if request.heads]

    def put_claim(self, key: RequestKey, claim: Claim, expected_seq: int) -> int:
        self._fence(key, expected_seq, "the claim")
        record = self._store(subjects.claim(key), encode(claim))
        self._requests.setdefault(key, _Request()).claims.append(record)
        return record.seq

    def last_claim(self, key: RequestKey) -> tuple[int, Claim] | None:
        self._expire()
        request = self._requests.get(key)
        if request is None or not request.claims:
            return None
        return request.claims[-1].seq, decode_claim(request.claims[-1].body)

    def claimed(self) -> list[RequestKey]:
        self._expire()
        return [key for key, request in self._requests.items() if request.claims]

    def claims(self, key: RequestKey) -> tuple[Claim, ...]:
        self._expire()
        return tuple(decode_claim(record.body) for record in self._requests.get(key, _Request()).claims)

    def put_frame(self, key: RequestKey, body: bytes) -> int:
        record = self._store(subjects.frame(key), body)
        frames = self._requests.setdefault(key, _Request()).frames
        last_seq = frames[-1].seq if frames else 0
        frames.append(record)
        self._announce(Reply(key, record.seq, last_seq, body))
        return record.seq

    def put_terminal(self, key: RequestKey, body: bytes, fence: int) -> int:
        request = self._requests.get(key)
        if request is not None and fence in request.terminals:
            return request.terminals[fence]
        self._fence(key, fence, "the terminal frame's claim")
        seq = self.put_frame(key, body)
        self._requests[key].terminals[fence] = seq
        return seq

    def read(self, key: RequestKey, after_seq: int) -> Tape:
        claimed = self.last_claim(key)
        request = self._requests.get(key, _Request())
        frames = tuple(TapeEntry(each.seq, each.body) for each in request.frames if each.seq > after_seq)
        return Tape(None, 0, frames) if claimed is None else Tape(claimed[1], claimed[0], frames)

    def purge(self, key: RequestKey) -> None:
        request = self._requests.pop(key, _Request())
        self._num_bytes -= sum(record.size for record in (*request.heads, *request.claims, *request.frames))

    def _fence(self, key: RequestKey, expected_seq: int, what: str) -> None:
        claimed = self.last_claim(key)
        actual_seq = 0 if claimed is None else claimed[0]
        if actual_seq != expected_seq:
            raise ClaimLost(f"{what} is not the newest", actual_seq=actual_seq)

    def _store(self, subject: str, body: bytes) -> _Record:
        self._expire()
        size = len(subject) + len(body) + OVERHEAD_BYTES
        if self._num_bytes + size > self._settings.max_bytes:
            raise TapeFull("the tape has no room")
        self._last_seq += 1
        self._num_bytes += size
        return _Record(self._last_seq, body, self._clock(), size)

    def _expire(self) -> None:
        oldest_s = self._clock() - self._settings.max_age_s
        for key, request in tuple(self._requests.items()):
            for records in (request.heads, request.claims, request.frames):
                while records and records[0].stored_s <= oldest_s:
                    self._num_bytes -= records.pop(0).size
            if not request.heads and not request.claims and not request.frames:
                del self._requests[key]
