"""The archive: the entries of a policy store in one encrypted file, to keep elsewhere and to come back from."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from inferflux.broker.broker import Broker
from inferflux.broker.errors import ConfigError
from inferflux.broker.wire.policies import VaultKey

from .passphrase import new_key, unwrap, wrap
from .sealing import SEALED_BUCKETS
from .store import PolicyStore

FORMAT = "inferflux-policy-1"


class Item(msgspec.Struct, frozen=True):
    """One entry, opened."""

    bucket: str
    key: str
    body: bytes


class _File(msgspec.Struct, frozen=True):
    format: str
    key: VaultKey
    nonce: bytes
    box: bytes


class Difference(msgspec.Struct, frozen=True):
    """What an import does to each entry, as `bucket/key`."""

    written: list[str]
    deleted: list[str]
    same: list[str]


def pack(items: Iterable[Item], passphrase: str) -> bytes:
    """The file's bytes. Takes a few tenths of a second."""
    key = new_key()
    nonce = secrets.token_bytes(12)
    box = AESGCM(key).encrypt(nonce, msgspec.json.encode(list(items)), FORMAT.encode())
    return msgspec.json.encode(_File(FORMAT, wrap(key, passphrase), nonce, box)) + b"\n"


def unpack(data: bytes, passphrase: str) -> list[Item]:
    """Raises ConfigError for another file, for one that was changed, and for a wrong passphrase."""
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError):
        file = None
    if file is None or file.format != FORMAT:
        raise ConfigError("this is no export of a policy store")
    key = unwrap(file.key, passphrase)
    try:
        return msgspec.json.decode(AESGCM(key).decrypt(file.nonce, file.box, FORMAT.encode()), type=list[Item])
    except (InvalidTag, ValueError):
        raise ConfigError("the export was changed, or is not complete") from None


async def export(store: PolicyStore, passphrase: str) -> tuple[bytes, int]:
    """The file's bytes, and how many entries are in it. Entries that are refused are left out, with a line in the
    log."""
    items = [
        Item(bucket, each.key, each.value or b"") for bucket in SEALED_BUCKETS for each in await store.entries(bucket)
    ]
    return await asyncio.to_thread(pack, items, passphrase), len(items)


async def restore(broker: Broker, store: PolicyStore, items: Iterable[Item], *, dry_run: bool = False) -> Difference:
    """Make the store what the items are: entries that are refused are replaced, and others that are not among them
    deleted."""
    wanted = {(item.bucket, item.key): item.body for item in items}
    unknown = sorted({bucket for bucket, _ in wanted} - set(SEALED_BUCKETS))
    if unknown:
        raise ConfigError(f"the export names buckets that hold no policy: {', '.join(unknown)}")
    now = {(bucket, each.key): each.value for bucket in SEALED_BUCKETS for each in await store.entries(bucket)}
    names = wanted.keys() | now.keys() | store.refused.keys()
    done = Difference([], [], [])
    for bucket, key in sorted(names):
        body = wanted.get((bucket, key))
        if now.get((bucket, key)) == body and (bucket, key) not in store.refused:
            done.same.append(f"{bucket}/{key}")
            continue
        (done.deleted if body is None else done.written).append(f"{bucket}/{key}")
        if not dry_run:
            entry = await (await broker.bucket(bucket)).get(key)
            await store.write(bucket, key, body, 0 if entry is None else entry.revision)
    return done
