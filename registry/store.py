"""The policy store: typed entries of the control plane's KV buckets, changed by compare-and-set, followed by watch.

What lies in KV passes through a `Seal`; without one it is plain JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar, cast

import msgspec

from inferflux.broker.broker import Broker, Bucket, Entry
from inferflux.broker.errors import BrokerUnavailable, RevisionConflict
from inferflux.broker.subjects import BUCKET_POLICY, KEYS_SEAL
from inferflux.broker.wire.base import Wire, encode
from inferflux.config.logs import get_logger

log = get_logger("registry.store")

RETRY_S = 0.5
MAX_RACES = 20

T = TypeVar("T", bound=Wire)


class RecordRefused(ValueError):
    """An entry that is not what was stored: it was changed, moved, or taken from an earlier time."""


class Seal(Protocol):
    """What entries pass through on their way to KV and back."""

    @property
    def refused(self) -> Mapping[tuple[str, str], str]:
        """Entries that were refused and not replaced since, by bucket and key, with the reason."""

    def last_good(self, bucket: str, key: str) -> bytes | None:
        """What an entry was before it was refused; None where that is not known."""

    def close(self, bucket: str, key: str, body: bytes | None, revision: int) -> bytes | None:
        """What to store over the entry of `revision`, 0 where there is none; None to delete it."""

    def open(self, bucket: str, key: str, stored: bytes | None, revision: int) -> bytes | None:
        """What was stored as `revision`; None where there is nothing. Raises RecordRefused."""

    async def settle(self, policy: Bucket, bucket: str, key: str, stored: bytes, revision: int) -> None:
        """After this was stored as `revision`."""


class Plain(Seal):
    """No seal."""

    @property
    def refused(self) -> Mapping[tuple[str, str], str]:
        return {}

    def last_good(self, bucket: str, key: str) -> bytes | None:
        return None

    def close(self, bucket: str, key: str, body: bytes | None, revision: int) -> bytes | None:
        return body

    def open(self, bucket: str, key: str, stored: bytes | None, revision: int) -> bytes | None:
        return stored

    async def settle(self, policy: Bucket, bucket: str, key: str, stored: bytes, revision: int) -> None:
        """Nothing has to be kept beside it."""


class PolicyStore:
    """Raw entries. Every call may raise BrokerError, and every read RecordRefused."""

    def __init__(self, broker: Broker, seal: Seal | None = None) -> None:
        self._broker = broker
        self.seal = seal or Plain()

    async def read(self, bucket: str, key: str) -> tuple[bytes | None, int]:
        """The body and its revision; None and 0 where there is none."""
        entry = await (await self._bucket(bucket)).get(key)
        if entry is None or entry.value is None:
            return self.seal.open(bucket, key, None, 0), 0
        return self.open(bucket, entry), entry.revision

    async def write(self, bucket: str, key: str, body: bytes | None, revision: int) -> None:
        """Replace what stands as `revision` (0: nothing), or delete it. Raises RevisionConflict."""
        if body is None and not revision and (bucket, key) not in self.refused:
            return
        entries = await self._bucket(bucket)
        stored = self.seal.close(bucket, key, body, revision)
        if stored is None:
            await entries.delete(key, revision)
            return
        now = await (entries.update(key, stored, revision) if revision else entries.create(key, stored))
        await self.seal.settle(await self._bucket(BUCKET_POLICY), bucket, key, stored, now)

    async def entries(self, bucket: str) -> list[Entry]:
        """Every entry, opened; what is refused is logged and left out."""
        found: list[Entry] = []
        for entry in await (await self._bucket(bucket)).entries():
            with _logged(bucket, entry.key):
                body = self.open(bucket, entry)
                if body is not None and entry.key not in KEYS_SEAL:
                    found.append(Entry(entry.key, body, entry.revision))
        return found

    async def watch(self, bucket: str) -> AsyncGenerator[Entry | None]:
        """Entries as they are stored, None once all are told."""
        return cast("AsyncGenerator[Entry | None]", (await self._bucket(bucket)).watch())

    def open(self, bucket: str, entry: Entry) -> bytes | None:
        """The body of an entry; None for one that is deleted. Raises RecordRefused."""
        return self.seal.open(bucket, entry.key, entry.value, entry.revision)

    @property
    def refused(self) -> Mapping[tuple[str, str], str]:
        """Entries that somebody without the key changed, by bucket and key, with the reason."""
        return self.seal.refused

    async def repair(self, *, dry_run: bool = False) -> tuple[list[str], list[str]]:
        """Store what is in force again where it is refused. Returns what was, and what was never seen in order."""
        repaired, left = list[str](), list[str]()
        for bucket, key in sorted(self.refused):
            good = self.seal.last_good(bucket, key)
            (left if good is None else repaired).append(f"{bucket}/{key}")
            if good is not None and not dry_run:
                entry = await (await self._bucket(bucket)).get(key)
                await self.write(bucket, key, good, 0 if entry is None else entry.revision)
        return repaired, left

    async def _bucket(self, name: str) -> Bucket:
        return await self._broker.bucket(name)


class Document(Generic[T]):
    """One typed entry; `empty` is what an entry that is not there reads as."""

    def __init__(self, store: PolicyStore, bucket: str, key: str, empty: T) -> None:
        self.bucket = bucket
        self.key = key
        self.empty = empty
        self._store = store

    async def read(self) -> tuple[T, int]:
        """The document and its revision. One that cannot be understood reads as empty, and is logged."""
        body, revision = await self._store.read(self.bucket, self.key)
        return self.decode(body) or self.empty, revision

    async def change(self, change: Callable[[T], T]) -> T:
        """Store what `change` makes of it; `change` runs again when somebody else was faster."""
        for _ in range(MAX_RACES):
            now, revision = await self.read()
            wanted = change(now)
            if wanted == now and revision:
                return now
            with contextlib.suppress(RevisionConflict):
                await self._store.write(self.bucket, self.key, encode(wanted), revision)
                return wanted
        raise BrokerUnavailable(f"others change {self.bucket}/{self.key} all the time; try again")

    def decode(self, body: bytes | None) -> T | None:
        """None, and a log line, for what cannot be understood; `empty` for what is not there."""
        if body is None:
            return self.empty
        try:
            return msgspec.json.decode(body, type=type(self.empty))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("entry not understood", bucket=self.bucket, key=self.key, reason=str(error))
            return None


class Follower:
    """Carries every change of one bucket into a process."""

    def __init__(self, store: PolicyStore, bucket: str) -> None:
        self.listed = asyncio.Event()
        self._store = store
        self._bucket = bucket
        self._documents: dict[str, Callable[[bytes | None], None]] = {}
        self._prefixes: dict[str, Callable[[str, bytes | None], None]] = {}

    def follow(self, document: Document[T], apply: Callable[[T], None]) -> None:
        """Call `apply` with the document after every change; one that is not understood leaves the last in force."""

        def take(body: bytes | None) -> None:
            if (now := document.decode(body)) is not None:
                apply(now)

        self._documents[document.key] = take

    def follow_all(self, prefix: str, apply: Callable[[str, bytes | None], None]) -> None:
        """Call `apply` with the key and body of each entry whose key begins so; None when it was deleted."""
        self._prefixes[prefix] = apply

    async def run(self) -> None:
        """Follow until cancelled. `listed` is set when all that was there at first has been told."""
        while True:
            try:
                await self._run()
            except BrokerUnavailable as error:
                log.warning("bucket not watched", bucket=self._bucket, reason=str(error))
            await asyncio.sleep(RETRY_S)

    async def _run(self) -> None:
        async with contextlib.aclosing(await self._store.watch(self._bucket)) as entries:
            async for entry in entries:
                if entry is None:
                    self.listed.set()
                    continue
                with _logged(self._bucket, entry.key):
                    self._tell(entry.key, self._store.open(self._bucket, entry))

    def _tell(self, key: str, body: bytes | None) -> None:
        if (take := self._documents.get(key)) is not None:
            take(body)
        for prefix, apply in self._prefixes.items():
            if key.startswith(prefix):
                apply(key, body)


@contextlib.contextmanager
def _logged(bucket: str, key: str) -> Iterator[None]:
    try:
        yield
    except RecordRefused as error:
        log.error("entry refused; what was in force stays", bucket=bucket, key=key, reason=str(error))
