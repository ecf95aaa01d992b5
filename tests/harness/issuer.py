"""An OIDC issuer on this machine: discovery, keys, tokens that are really signed, and all that can go wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from .http import Answer, Asked, HttpServer

AUDIENCE = "inferflux"


class Issuer:
    """`keys` are those that it lists; `answers` replace what it says at a path. `down` closes its door."""

    def __init__(self) -> None:
        self.keys: list[Any] = [RSAKey.generate_key(2048, {"kid": "rsa-1", "use": "sig"})]
        self.answers: dict[str, Answer] = {}
        self.down = False
        self._server = HttpServer(self._answer)
        self.url = self._server.url

    @contextmanager
    def running(self) -> Iterator[Issuer]:
        with self._server.running():
            yield self

    @property
    def asked(self) -> list[str]:
        return [each.path for each in self._server.asked]

    def token(self, *, key: Any = None, alg: str = "RS256", header: dict[str, Any] | None = None, **claims: Any) -> str:
        """Signed by the first key that is listed, for an hour; claims that are None are left out."""
        key = self.keys[0] if key is None else key
        now_s = int(time.time())
        body = {"iss": self.url, "aud": AUDIENCE, "sub": "ann", "iat": now_s, "exp": now_s + 3600} | claims
        head = {"alg": alg, "kid": key.kid} | (header or {})
        return jwt.encode(
            {name: value for name, value in head.items() if value is not None},
            {name: value for name, value in body.items() if value is not None},
            key,
            algorithms=[alg],
        )

    def rotate(self, *, keep_old: bool = False) -> None:
        """Sign with another key from now on."""
        fresh = RSAKey.generate_key(2048, {"kid": f"rsa-{time.monotonic_ns()}", "use": "sig"})
        self.keys = [fresh, *(self.keys if keep_old else [])]

    def _answer(self, asked: Asked) -> Answer:
        if self.down:
            return Answer(503, b"away")
        if asked.path in self.answers:
            return self.answers[asked.path]
        if asked.path == "/.well-known/openid-configuration":
            return Answer(200, {"issuer": self.url, "jwks_uri": f"{self.url}/keys"})
        if asked.path == "/keys":
            return Answer(200, KeySet(self.keys).as_dict(private=False))
        return Answer(404, b"")


def elliptic_key() -> ECKey:
    return ECKey.generate_key("P-256", {"kid": "ec-1", "use": "sig"})


def edwards_key() -> OKPKey:
    return OKPKey.generate_key("Ed25519", {"kid": "ed-1", "use": "sig"})
