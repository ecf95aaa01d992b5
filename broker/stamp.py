"""The stamp: an API replica's proof that it has authenticated, admitted and checked a prompt.

An HMAC-SHA256 over subject, owner, message id, body digest, expiry and policy revision, under a secret that API
replicas and workers hold. It says whose the prompt is, and until when and under which policy it was checked; a worker
checks its body all the same.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

import msgspec


class Stamp(msgspec.Struct, frozen=True):
    """What a valid stamp vouches for."""

    owner: str
    expires_s: int
    policy_revision: int


class Stamper:
    """Writes and checks the `Inferflux-Stamp` header: `1;<owner>;<expires>;<revision>;<base64url mac>`."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("the stamp secret must have at least 16 bytes")
        self._secret = secret

    def write(self, stamp: Stamp, *, subject: str, msg_id: str, body: bytes) -> str:
        mac = self._mac(stamp, subject, msg_id, body)
        return f"1;{stamp.owner};{stamp.expires_s};{stamp.policy_revision};{mac}"

    def check(self, header: str | None, *, subject: str, msg_id: str, body: bytes) -> Stamp | None:
        """The stamp when it is genuine, expired or not: its owner still waits for an answer. None otherwise."""
        parts = (header or "").split(";")
        if len(parts) != 5 or parts[0] != "1" or not all(_is_number(part) for part in parts[2:4]):
            return None
        stamp = Stamp(parts[1], int(parts[2]), int(parts[3]))
        genuine = hmac.compare_digest(parts[4].encode(), self._mac(stamp, subject, msg_id, body).encode())
        return stamp if genuine else None

    def tag(self, request: str, tenant: str) -> str:
        """Binds a request id to its tenant, so that any replica can check who may resume or cancel it."""
        digest = hmac.digest(self._secret, f"tag\n{request}\n{tenant}".encode(), "sha256")
        return base64.b32encode(digest[:5]).decode().lower()

    def _mac(self, stamp: Stamp, subject: str, msg_id: str, body: bytes) -> str:
        text = "\n".join(
            (
                "stamp",
                subject,
                stamp.owner,
                msg_id,
                hashlib.sha256(body).hexdigest(),
                str(stamp.expires_s),
                str(stamp.policy_revision),
            )
        )
        return base64.urlsafe_b64encode(hmac.digest(self._secret, text.encode(), "sha256")).decode().rstrip("=")


def _is_number(text: str) -> bool:
    # int() refuses text of thousands of digits, and anybody can send a header.
    return text.isdecimal() and len(text) <= 20
