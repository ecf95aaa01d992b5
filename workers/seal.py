"""Token ids on the tape: sealed for workers alone, with a running hash that proves a continuation.

In clear, ids would undo a redaction, and an unkeyed hash of one id is found by trying the vocabulary: so both are
keyed by a secret that only workers hold, together with the request and its sequence in the prompt stream.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Sequence
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from inferflux.broker.subjects import RequestKey
from inferflux.broker.wire.requests import Frame

_NONCE = struct.Struct(">IHHI")


class Sealer:
    """Makes a `RequestSeal` for each request."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("the seal secret must have at least 16 bytes")
        self._secret = hashlib.blake2b(secret).digest()

    def request(self, key: RequestKey, prompt_seq: int) -> RequestSeal:
        """Every attempt at the same stored prompt gets the same seal."""
        name = f"{key.owner}\n{key.request}\n{prompt_seq}".encode()
        return RequestSeal(hashlib.blake2b(name, key=self._secret, digest_size=32).digest())


class RequestSeal:
    """Seals and hashes the token ids of one request."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher = AESGCM(key)

    def seal(self, tokens: Sequence[int], *, attempt: int, choice: int, index: int) -> str:
        """Base64 AES-256-GCM. The nonce is (attempt, choice, index): one attempt writes a position once."""
        plain = struct.pack(f"<{len(tokens)}I", *tokens)
        return base64.b64encode(self._cipher.encrypt(_nonce(attempt, choice, index), plain, None)).decode()

    def unseal(self, frame: Frame) -> tuple[int, ...] | None:
        """The frame's token ids; None when it has none, or they were sealed under another secret."""
        if frame.sealed is None:
            return () if frame.num_tokens == 0 else None
        try:
            nonce = _nonce(frame.attempt, frame.choice, frame.index)
            plain = self._cipher.decrypt(nonce, base64.b64decode(frame.sealed), None)
        except (InvalidTag, ValueError):
            return None
        return struct.unpack(f"<{len(plain) // 4}I", plain)

    def running_hash(self, choice: int) -> RunningHash:
        return RunningHash(hashlib.blake2b(struct.pack("<I", choice), key=self._key, digest_size=8))

    def seed(self) -> int:
        """A sampling seed that every attempt at this request agrees on."""
        return int.from_bytes(hashlib.blake2b(b"seed", key=self._key, digest_size=4).digest(), "little")


class RunningHash:
    """Hash of all token ids of a choice so far, 16 hexadecimal digits."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def update(self, tokens: Sequence[int]) -> str:
        self._state.update(struct.pack(f"<{len(tokens)}I", *tokens))
        return self.digest()

    def digest(self) -> str:
        return str(self._state.hexdigest())


def _nonce(attempt: int, choice: int, index: int) -> bytes:
    return _NONCE.pack(attempt & 0xFFFFFFFF, (attempt >> 32) & 0xFFFF, choice, index)
