"""Presence: which API replicas are there, and which requests of other replicas this one reads."""

from __future__ import annotations

import contextlib
import time
from collections import Counter

from inferflux.broker.broker import Broker
from inferflux.broker.errors import BrokerError
from inferflux.broker.subjects import BUCKET_PRESENCE, RequestKey, api_owner, encode_token, key_id
from inferflux.config.logs import get_logger

from .rounds import Rounds

log = get_logger("api.presence")

BEAT_S = 1.0
BEAT_TTL_S = 10.0
OWNER = "owner."
READER = "reader."


class Presence:
    """Entries that expire, in a bucket that all replicas share. Nobody who cannot write there takes others for dead."""

    def __init__(self, broker: Broker, owner: str, grace_s: float) -> None:
        self._broker = broker
        self._owner = owner
        self._lease_s = max(grace_s, BEAT_TTL_S)
        self._beaten_s: float | None = None
        self._read: Counter[RequestKey] = Counter()
        self._renew_s: dict[RequestKey, float] = {}
        self.rounds = Rounds("presence", self._tell, BEAT_S)

    async def start(self) -> None:
        await self._beat()
        self.rounds.start()

    async def close(self) -> None:
        """Withdraw, so that the others need not wait for the entry to expire."""
        await self.rounds.close()
        try:
            await (await self._broker.bucket(BUCKET_PRESENCE)).delete(OWNER + encode_token(self._owner))
        except BrokerError as error:
            log.warning("presence not withdrawn", reason=str(error))

    @property
    def certain(self) -> bool:
        """Whether this replica could say lately that it is there itself."""
        return self._beaten_s is not None and time.monotonic() - self._beaten_s < BEAT_TTL_S / 2

    async def read(self, key: RequestKey) -> None:
        """Tell the request's owner, or its heirs, that it is read here. Raises BrokerError."""
        self._read[key] += 1
        await self._renew(key)

    def leave(self, key: RequestKey) -> None:
        """One reader less here; the entry expires by itself."""
        self._read[key] -= 1
        if self._read[key] <= 0:
            del self._read[key]
            self._renew_s.pop(key, None)

    async def is_read(self, key: RequestKey) -> bool:
        """Whether another replica reads this request, or did so until lately."""
        bucket = await self._broker.bucket(BUCKET_PRESENCE)
        return await bucket.get(READER + key_id(key)) is not None

    async def is_there(self, replica: str) -> bool:
        """Whether a replica lives, as far as its entry says. Raises BrokerError."""
        bucket = await self._broker.bucket(BUCKET_PRESENCE)
        return await bucket.get(OWNER + encode_token(api_owner(replica))) is not None

    async def look(self) -> tuple[set[str], set[str]]:
        """Owners that are there (encoded), and requests that are read by other replicas (as `key_id` names them)."""
        keys = await (await self._broker.bucket(BUCKET_PRESENCE)).keys()
        owners = {key.removeprefix(OWNER) for key in keys if key.startswith(OWNER)}
        return owners, {key.removeprefix(READER) for key in keys if key.startswith(READER)}

    async def _beat(self) -> None:
        try:
            bucket = await self._broker.bucket(BUCKET_PRESENCE)
            await bucket.put(OWNER + encode_token(self._owner), b"", ttl_s=BEAT_TTL_S)
        except BrokerError as error:
            log.warning("presence not told", reason=str(error))
        else:
            self._beaten_s = time.monotonic()

    async def _renew(self, key: RequestKey) -> None:
        bucket = await self._broker.bucket(BUCKET_PRESENCE)
        await bucket.put(READER + key_id(key), b"", ttl_s=self._lease_s)
        self._renew_s[key] = time.monotonic() + self._lease_s / 3

    async def _tell(self) -> None:
        await self._beat()
        now_s = time.monotonic()
        for key in [key for key, due_s in self._renew_s.items() if due_s <= now_s]:
            with contextlib.suppress(BrokerError):
                await self._renew(key)
