"""Idempotency: under one key, one tenant's request runs once, however often and wherever it is sent."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from enum import Enum, auto

import msgspec

from inferflux.broker.broker import Broker, Tape
from inferflux.broker.errors import BrokerError, BrokerUnavailable, Code, RequestError, RevisionConflict
from inferflux.broker.subjects import BUCKET_IDEMPOTENCY, RequestKey
from inferflux.broker.wire.base import Wire, encode
from inferflux.broker.wire.requests import Failure, decode_frame
from inferflux.config.logs import get_logger

from .identity import key_of
from .problems import http_error

log = get_logger("api")

HEADER = "idempotency-key"
MAX_KEY = 255
MAX_RACES = 10


class Record(Wire, frozen=True, kw_only=True):
    """The request behind a key. `prompt` is its sequence in the stream, once that is known to hold it."""

    request: str
    digest: str
    created: float
    prompt: int | None = None


class Slot(msgspec.Struct, frozen=True):
    """A record where it lies; `mine` when the caller has put it there."""

    name: str
    record: Record
    revision: int
    mine: bool


class Standing(Enum):
    """What a retry meets."""

    OPEN = auto()
    FAILED = auto()
    GONE = auto()


_decode = msgspec.json.Decoder(Record).decode


def header(headers: Mapping[str, str]) -> str | None:
    """The caller's key. Raises RequestError for one that cannot be kept."""
    key = headers.get(HEADER)
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        raise RequestError(
            Code.INVALID_REQUEST,
            f"'Idempotency-Key': use 1 to {MAX_KEY} printable ASCII characters",
            param="Idempotency-Key",
        )
    return key


class Idempotency:
    """The records of all tenants, each for `ttl_s` from its last change."""

    def __init__(self, broker: Broker, ttl_s: float, queue_timeout_s: float) -> None:
        self._broker = broker
        self._ttl_s = ttl_s
        self._queue_timeout_s = queue_timeout_s

    async def enter(self, tenant: str, key: str, fresh: Record) -> Slot:
        """Put a fresh record under a key, or find the one that is there. Raises RequestError when that is of another
        body."""
        name = hashlib.sha256(f"{tenant}\n{key}".encode()).hexdigest()
        bucket = await self._broker.bucket(BUCKET_IDEMPOTENCY)
        for _ in range(MAX_RACES):
            try:
                return Slot(name, fresh, await bucket.create(name, encode(fresh), ttl_s=self._ttl_s), True)
            except RevisionConflict:
                entry = await bucket.get(name)
            if entry is not None and entry.value is not None:
                record = _decode(entry.value)
                if record.digest != fresh.digest:
                    raise RequestError(
                        Code.IDEMPOTENCY_CONFLICT,
                        "this Idempotency-Key was used for another request; use a new key",
                        param="Idempotency-Key",
                    )
                return Slot(name, record, entry.revision, False)
        raise BrokerUnavailable(f"the idempotency key changed {MAX_RACES} times while it was read")

    async def replace(self, slot: Slot, fresh: Record) -> Slot | None:
        """Put another record in a slot; None when somebody else was faster."""
        bucket = await self._broker.bucket(BUCKET_IDEMPOTENCY)
        try:
            revision = await bucket.update(slot.name, encode(fresh), slot.revision, ttl_s=self._ttl_s)
        except RevisionConflict:
            return None
        return Slot(slot.name, fresh, revision, True)

    async def stored(self, slot: Slot, prompt_seq: int) -> None:
        """Note that the prompt is in the stream: from now on no retry publishes it."""
        try:
            await self.replace(slot, msgspec.structs.replace(slot.record, prompt=prompt_seq))
        except BrokerError as error:
            log.warning("idempotency record not updated", request=slot.record.request, reason=str(error))

    async def withdraw(self, slot: Slot) -> None:
        """Free a key whose request was refused."""
        bucket = await self._broker.bucket(BUCKET_IDEMPOTENCY)
        try:
            await bucket.delete(slot.name, slot.revision)
        except BrokerError as error:
            log.warning("idempotency record not withdrawn", request=slot.record.request, reason=str(error))

    async def standing(self, record: Record) -> Standing:
        """What became of a request. FAILED is one that trying again may cure, or that was never stored in time."""
        key = key_of(record.request)
        tape = await self._broker.read_tape(key)
        if tape.claim is None and not tape.frames:
            if record.prompt is None:
                late = time.time() > record.created + self._queue_timeout_s
                return Standing.FAILED if late else Standing.OPEN
            if await self._broker.read_prompt(record.prompt) is not None:
                return Standing.OPEN
            # It may have been answered between the two looks.
            tape = await self._broker.read_tape(key)
            if not tape.frames:
                return Standing.GONE
        return Standing.FAILED if failed(tape) else Standing.OPEN


async def free(broker: Broker, key: RequestKey) -> None:
    """Free the idempotency key of a request that has failed: a retry may come when no tape says so any more."""
    try:
        head = await broker.read_head(key)
        if head is None or head.slot is None:
            return
        bucket = await broker.bucket(BUCKET_IDEMPOTENCY)
        entry = await bucket.get(head.slot)
        if entry is not None and entry.value is not None and _decode(entry.value).request == key.request:
            await bucket.delete(head.slot, entry.revision)
    except BrokerError as error:
        log.warning("idempotency key not freed", request=key.request, reason=str(error))


def failed(tape: Tape) -> bool:
    """Whether a request has ended in a way that trying again may cure."""
    end = tape.end
    if end is None:
        return False
    try:
        error = decode_frame(end).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return True
    return error is not None and may_pass(error)


def may_pass(error: Failure) -> bool:
    """Whether trying again may cure a failure."""
    return http_error(error.code).status >= 429
