"""A KV bucket on JetStream: one stream whose newest message on a subject is the entry."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing

from . import subjects
from .broker import Bucket, Entry
from .errors import BrokerError, BrokerUnavailable, RevisionConflict
from .jetstream_api import ApiError, JetStreamApi, StoredMessage, WrongSequence
from .link import Link
from .watch import BucketWatch

TOMBSTONE = {subjects.HEADER_KV_OPERATION: "DEL"}


class JetStreamBucket(Bucket):
    """Entries are read from the stream's leader: a create that lost must find the entry it lost to."""

    def __init__(self, link: Link, js: JetStreamApi, name: str) -> None:
        self._link = link
        self._js = js
        self._name = name
        self._expires = name in subjects.EXPIRING_BUCKETS

    async def get(self, key: str) -> Entry | None:
        stored = await self._stored(key)
        if stored is None or is_marker(stored.headers):
            return None
        return Entry(key, stored.data, stored.seq)

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        return await self._publish(key, value, self._ttl(ttl_s))

    async def create(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        headers = self._ttl(ttl_s)
        try:
            return await self._publish(key, value, headers, expected=0)
        except RevisionConflict:
            stored = await self._stored(key)
            if stored is not None and not is_marker(stored.headers):
                raise
        # What is left there only marks that the key was deleted or has expired.
        return await self._publish(key, value, headers, expected=0 if stored is None else stored.seq)

    async def update(self, key: str, value: bytes, revision: int, *, ttl_s: float | None = None) -> int:
        return await self._publish(key, value, self._ttl(ttl_s), expected=revision)

    async def delete(self, key: str, revision: int | None = None) -> None:
        stored = await self._stored(key)
        if stored is None or is_marker(stored.headers):
            if revision is not None:
                raise RevisionConflict(f"{self._name}: {key} is gone")
            return
        await self._publish(key, b"", TOMBSTONE, expected=revision)

    async def entries(self) -> list[Entry]:
        return await self._list(headers_only=False)

    async def keys(self) -> list[str]:
        return [entry.key for entry in await self._list(headers_only=True)]

    def watch(self) -> AsyncIterator[Entry | None]:
        return BucketWatch(self._link, self._js, self._name)

    async def _list(self, *, headers_only: bool) -> list[Entry]:
        """A watch never gives up, so the time for each entry is limited here."""
        found: list[Entry] = []
        async with aclosing(BucketWatch(self._link, self._js, self._name, headers_only=headers_only)) as watch:
            try:
                while True:
                    async with asyncio.timeout(self._js.timeout_s):
                        entry = await anext(watch)
                    if entry is None:
                        return found
                    found.append(entry)
            except TimeoutError:
                raise BrokerUnavailable(f"the bucket {self._name} cannot be listed now") from None

    async def _stored(self, key: str) -> StoredMessage | None:
        return await self._js.stored(subjects.kv_stream(self._name), last_by_subj=subjects.kv(self._name, key))

    async def _publish(self, key: str, value: bytes, headers: Mapping[str, str], expected: int | None = None) -> int:
        headers = dict(headers)
        if expected is not None:
            headers[subjects.HEADER_EXPECTED_SUBJECT_SEQ] = str(expected)
        try:
            return await self._js.put(subjects.kv_stream(self._name), subjects.kv(self._name, key), value, headers)
        except WrongSequence as error:
            raise RevisionConflict(f"{self._name}: {key} has changed") from error
        except ApiError as error:
            raise BrokerError(f"{self._name}: {key} cannot be written: {error.description}") from error

    def _ttl(self, ttl_s: float | None) -> dict[str, str]:
        if ttl_s is None:
            return {}
        if not self._expires:
            raise ValueError(f"entries of the bucket {self._name!r} do not expire")
        return {subjects.HEADER_TTL: f"{max(1, math.ceil(ttl_s))}s"}


def is_marker(headers: Mapping[str, str]) -> bool:
    """Whether a message only says that its key was deleted or has expired."""
    return any(name in headers for name in subjects.MARKER_HEADERS)
