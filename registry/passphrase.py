"""The passphrase of a sealed policy store: it wraps the key that everything else is sealed with."""

from __future__ import annotations

import hashlib
import secrets

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from inferflux.broker.errors import ConfigError
from inferflux.broker.wire.policies import VaultKey

PASSPHRASE = "INFERFLUX_POLICY_PASSPHRASE"  # noqa: S105 - its variable's name
MIN_PASSPHRASE = 8
KEY_BYTES = 32
# A guess costs 64 MiB and a few tenths of a second.
COST, BLOCK, LANES = 2**16, 8, 1
# What a stored record may ask of us, whoever wrote it.
MAX_COST, MAX_BLOCK, MAX_LANES = 2**20, 16, 4


class WrongPassphrase(ConfigError):
    """The passphrase does not open the store."""


def new_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def wrap(key: bytes, passphrase: str, *, cost: int = COST) -> VaultKey:
    """The key under this passphrase. Takes a few tenths of a second. Raises ConfigError for one that is too short."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise ConfigError(
            f"the policy passphrase must have at least {MIN_PASSPHRASE} characters; 20 or more are better"
        )
    bare = VaultKey(n=cost, r=BLOCK, p=LANES, salt=secrets.token_bytes(16), nonce=secrets.token_bytes(12), wrapped=b"")
    box = AESGCM(_derived(bare, passphrase)).encrypt(bare.nonce, key, _about(bare))
    return msgspec.structs.replace(bare, wrapped=box)


def unwrap(record: VaultKey, passphrase: str) -> bytes:
    """The key. Takes as long. Raises WrongPassphrase, also for a record that was changed."""
    sane = 2 <= record.n <= MAX_COST and record.n & (record.n - 1) == 0
    if not sane or not 1 <= record.r <= MAX_BLOCK or not 1 <= record.p <= MAX_LANES or len(record.nonce) != 12:
        raise WrongPassphrase("the policy store's key record is damaged: import an export, or restore a backup")
    try:
        return AESGCM(_derived(record, passphrase)).decrypt(record.nonce, record.wrapped, _about(record))
    except InvalidTag:
        raise WrongPassphrase(f"{PASSPHRASE} does not open the policy store: it is wrong, or was changed") from None


def _derived(record: VaultKey, passphrase: str) -> bytes:
    n, r, p = record.n, record.r, record.p
    return hashlib.scrypt(
        passphrase.encode(), salt=record.salt, n=n, r=r, p=p, maxmem=130 * n * r * p + 2**20, dklen=KEY_BYTES
    )


def _about(record: VaultKey) -> bytes:
    return msgspec.json.encode(["inferflux policy key", record.version, record.n, record.r, record.p, record.salt])
