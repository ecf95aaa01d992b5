"""The vault: what seals the policy store, and notices when somebody without its key changed an entry."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from inferflux.broker.broker import Bucket, Entry
from inferflux.broker.errors import BrokerUnavailable, RevisionConflict
from inferflux.broker.subjects import BUCKET_POLICY, KEY_MANIFEST, KEY_VAULT
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.policies import Manifest, SealedRecord
from inferflux.config.logs import get_logger

from .store import MAX_RACES, RecordRefused, Seal

log = get_logger("registry.vault")

# The first byte of what is sealed: a deleted entry stays as a record, because only a record can be proven.
_HERE, _GONE = b"\x01", b"\x00"


class Mark(msgspec.Struct, frozen=True):
    """The newest generation of an entry that this process knows of, and what it saw there. `digest` is empty where
    only the manifest told of it; `revision` is the bucket's."""

    generation: int
    digest: bytes = b""
    body: bytes | None = None
    revision: int = 0


class Vault(Seal):
    """Entries carry a generation, which never falls: a record that was moved, changed or taken from an earlier time
    is refused, and so is the absence of one that was there."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._marks: dict[tuple[str, str], Mark] = {}
        self._refused: dict[tuple[str, str], str] = {}

    @property
    def refused(self) -> Mapping[tuple[str, str], str]:
        return self._refused

    @property
    def generations(self) -> dict[str, int]:
        """Of every entry but the vault's own, as a manifest has them."""
        return {
            f"{bucket}/{key}": mark.generation
            for (bucket, key), mark in self._marks.items()
            if (bucket, key) != (BUCKET_POLICY, KEY_MANIFEST)
        }

    @property
    def generation(self) -> int:
        """Of the manifest: how often the store was changed."""
        mark = self._marks.get((BUCKET_POLICY, KEY_MANIFEST))
        return 0 if mark is None else mark.generation

    def last_good(self, bucket: str, key: str) -> bytes | None:
        """What this process saw last of an entry before it was refused."""
        mark = self._marks.get((bucket, key))
        return None if mark is None else mark.body

    def expect(self, manifest: Manifest) -> None:
        """From now on nothing older than the manifest says is taken."""
        for name, generation in manifest.generations.items():
            bucket, _, key = name.partition("/")
            mark = self._marks.get((bucket, key))
            if mark is None or mark.generation < generation:
                self._marks[bucket, key] = Mark(generation)

    def close(self, bucket: str, key: str, body: bytes | None, revision: int) -> bytes | None:
        mark = self._marks.get((bucket, key))
        generation = 1 if mark is None else mark.generation + 1
        nonce = secrets.token_bytes(12)
        plain = _GONE if body is None else _HERE + body
        box = self._cipher.encrypt(nonce, plain, _about(bucket, key, generation))
        return encode(SealedRecord(generation=generation, nonce=nonce, box=box))

    def open(self, bucket: str, key: str, stored: bytes | None, revision: int) -> bytes | None:
        if (bucket, key) == (BUCKET_POLICY, KEY_VAULT):
            return stored
        mark = self._marks.get((bucket, key))
        if mark is not None and 0 < revision < mark.revision:
            # A watch tells what was, after somebody else here has read what is.
            return mark.body
        try:
            body = self._opened(bucket, key, stored, revision, mark)
        except RecordRefused as error:
            self._refused[bucket, key] = str(error)
            raise
        self._refused.pop((bucket, key), None)
        return body

    async def settle(self, policy: Bucket, bucket: str, key: str, stored: bytes, revision: int) -> None:
        """Bring the manifest up to what this process has seen; it may be behind after a crash, and never ahead."""
        self.open(bucket, key, stored, revision)
        await self.write_manifest(policy)

    async def write_manifest(self, policy: Bucket) -> None:
        for _ in range(MAX_RACES):
            entry = await policy.get(KEY_MANIFEST)
            told: dict[str, int] = {}
            if entry is not None:
                try:
                    told = read_manifest(self, entry).generations
                except RecordRefused as error:
                    log.error("manifest refused; it is written anew", reason=str(error))
            seen = self.generations
            wanted = {name: max(told.get(name, 0), seen.get(name, 0)) for name in told.keys() | seen.keys()}
            if wanted == told and entry is not None:
                return
            stored = self.close(BUCKET_POLICY, KEY_MANIFEST, encode(Manifest(generations=wanted)), 0) or b""
            try:
                if entry is None:
                    revision = await policy.create(KEY_MANIFEST, stored)
                else:
                    revision = await policy.update(KEY_MANIFEST, stored, entry.revision)
            except RevisionConflict:
                continue
            self.open(BUCKET_POLICY, KEY_MANIFEST, stored, revision)
            return
        raise BrokerUnavailable("others change the policy store all the time; try again")

    def _opened(self, bucket: str, key: str, stored: bytes | None, revision: int, mark: Mark | None) -> bytes | None:
        if stored is None:
            if mark is not None:
                raise RecordRefused("it is gone, and nobody who has the key deleted it")
            return None
        try:
            record = msgspec.json.decode(stored, type=SealedRecord)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise RecordRefused("it is not sealed") from None
        if mark is not None and record.generation < mark.generation:
            raise RecordRefused(f"it is of generation {record.generation}, and there was a {mark.generation}")
        try:
            plain = self._cipher.decrypt(record.nonce, record.box, _about(bucket, key, record.generation))
        except (InvalidTag, ValueError):
            raise RecordRefused("it was changed, moved here, or sealed with another key") from None
        digest = hashlib.sha256(record.box).digest()
        if mark is not None and mark.generation == record.generation and mark.digest not in (b"", digest):
            raise RecordRefused(f"there was another one of generation {record.generation}")
        body = plain[1:] if plain[:1] == _HERE else None
        self._marks[bucket, key] = Mark(record.generation, digest, body, revision)
        return body


def read_manifest(vault: Vault, entry: Entry) -> Manifest:
    """Raises RecordRefused."""
    body = vault.open(BUCKET_POLICY, KEY_MANIFEST, entry.value, entry.revision)
    try:
        return msgspec.json.decode(body or b"", type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RecordRefused("the manifest cannot be understood") from None


def _about(bucket: str, key: str, generation: int) -> bytes:
    return msgspec.json.encode(["inferflux policy record", 1, bucket, key, generation])
