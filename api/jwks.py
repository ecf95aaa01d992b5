"""The public keys of an OIDC issuer: found by discovery, fetched with care, kept while the issuer is down."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from inferflux.config.logs import get_logger
from inferflux.config.settings import AuthSettings

log = get_logger("api.oidc")

DISCOVERY = "/.well-known/openid-configuration"
FETCH_S = 5.0
MAX_DOCUMENT = 512 * 1024
MAX_KEYS = 100
MIN_RSA_BITS = 2048

_KEYS: dict[str, type[RSAKey] | type[ECKey] | type[OKPKey]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}


class PublicKey(msgspec.Struct, frozen=True):
    """A signature key of the issuer; `algorithm` is the only one it may be used with, where it says so."""

    kid: str | None
    algorithm: str | None
    key: RSAKey | ECKey | OKPKey


class IssuerUnavailable(Exception):
    """The issuer's keys cannot be had; trying again after `retry_s` may help."""

    def __init__(self, reason: str, retry_s: float) -> None:
        super().__init__(reason)
        self.retry_s = retry_s


class Jwks:
    """Keys are fetched anew when they are `auth.oidc_jwks_ttl_s` old, and when a token names one that is not known,
    but not more often than every `auth.oidc_refetch_s`. While the issuer is down, known keys last for
    `auth.oidc_jwks_stale_s`."""

    def __init__(self, settings: AuthSettings, now_s: Callable[[], float] = time.monotonic) -> None:
        assert settings.oidc_issuer is not None
        self._issuer = settings.oidc_issuer
        self._settings = settings
        self._now_s = now_s
        self._keys: tuple[PublicKey, ...] | None = None
        self._fetched_s = 0.0
        self._tried_s: float | None = None
        self._problem = "they were not fetched yet"
        self._fetching: asyncio.Task[None] | None = None
        self._http = httpx.AsyncClient(
            timeout=FETCH_S, follow_redirects=False, trust_env=not is_loopback(self._issuer), headers={"accept": "*/*"}
        )

    async def find(self, kid: str | None, algorithm: str) -> PublicKey | None:
        """The key of this id; without an id the only one that fits. Raises IssuerUnavailable."""
        self._forget_stale()
        if self._keys is None:
            await self._fetch_soon()
        elif self._now_s() - self._fetched_s >= self._settings.oidc_jwks_ttl_s:
            # Whoever asks meanwhile is answered from what is known.
            self._start_fetch()
        found = self._known(kid, algorithm)
        if found is None and self._keys is not None:
            await self._fetch_soon()
            found = self._known(kid, algorithm)
        if found is None and (self._keys is None or self._problem):
            raise IssuerUnavailable(self._problem, self._settings.oidc_refetch_s)
        return found

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        await self._http.aclose()

    def _known(self, kid: str | None, algorithm: str) -> PublicKey | None:
        fitting = [each for each in self._keys or () if each.algorithm in (None, algorithm)]
        if kid is None:
            return fitting[0] if len(fitting) == 1 else None
        return next((each for each in fitting if each.kid == kid), None)

    def _forget_stale(self) -> None:
        if self._keys is not None and self._now_s() - self._fetched_s >= self._settings.oidc_jwks_stale_s:
            self._keys = None

    async def _fetch_soon(self) -> None:
        self._start_fetch()
        if self._fetching is not None:
            await asyncio.shield(self._fetching)

    def _start_fetch(self) -> None:
        now_s = self._now_s()
        if self._fetching is not None and not self._fetching.done():
            return
        if self._tried_s is not None and now_s - self._tried_s < self._settings.oidc_refetch_s:
            return
        self._tried_s = now_s
        self._fetching = asyncio.create_task(self._fetch(), name="fetch of the issuer's keys")

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(2 * FETCH_S):
                discovered = await self._get(self._issuer.rstrip("/") + DISCOVERY)
                if discovered.get("issuer") != self._issuer:
                    raise ValueError("its discovery document names another issuer")
                self._keys = _keys(await self._get(_allowed(discovered.get("jwks_uri"), self._issuer)))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            self._problem = f"the keys of {self._issuer} cannot be fetched: {error or type(error).__name__}"
            log.warning("keys not fetched", issuer=self._issuer, reason=str(error) or type(error).__name__)
        else:
            self._fetched_s, self._problem = self._now_s(), ""
            log.info("keys fetched", issuer=self._issuer, num_keys=len(self._keys))

    async def _get(self, url: str) -> dict[str, Any]:
        body = b""
        async with self._http.stream("GET", url) as response:
            if response.status_code != 200:
                raise ValueError(f"{url} answered with HTTP status {response.status_code}")
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > MAX_DOCUMENT:
                    raise ValueError(f"{url} answered with more than {MAX_DOCUMENT} bytes")
        document = msgspec.json.decode(body)
        if not isinstance(document, dict):
            raise ValueError(f"{url} answered with something other than a JSON object")
        return document


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _allowed(url: object, issuer: str) -> str:
    if not isinstance(url, str) or not urlsplit(url).hostname:
        raise ValueError("its discovery document has no jwks_uri")
    # An issuer out there must not send us to what only this machine can reach.
    if urlsplit(url).scheme != "https" and not (is_loopback(url) and is_loopback(issuer)):
        raise ValueError("its jwks_uri is no https URL")
    return url


def _keys(document: dict[str, Any]) -> tuple[PublicKey, ...]:
    listed = document.get("keys")
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError(f"its key set must be a list of at most {MAX_KEYS} keys")
    keys = tuple(key for key in map(_key, listed) if key is not None)
    if not keys:
        raise ValueError("its key set has no public signature key")
    return keys


def _key(given: Any) -> PublicKey | None:
    """None for what is no public signature key: symmetric ones above all, which would let everybody sign."""
    if not isinstance(given, dict) or given.get("use", "sig") != "sig":
        return None
    kind = _KEYS.get(str(given.get("kty")))
    kid, algorithm = given.get("kid"), given.get("alg")
    if kind is None or not isinstance(kid, str | None) or not isinstance(algorithm, str | None):
        return None
    try:
        key = kind.import_key(given)
        if isinstance(key, RSAKey) and key.public_key.key_size < MIN_RSA_BITS:
            return None
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return PublicKey(kid, algorithm, key)
