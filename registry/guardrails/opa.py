"""Open Policy Agent: a policy of somebody else's, asked about each prompt over OPA's data API (version 1).

The request is `{"input": ...}`; the answer `{"result": true}`, or `{"result": {"allow": true, "reason": "..."}}`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import GuardrailSettings

DEFAULT_PATH = "/v1/data/inferflux"
MAX_ANSWER_BYTES = 64 * 1024
MAX_REASON = 200
MAX_CACHED = 10_000
MAX_CONNECTIONS = 32

_canonical = msgspec.json.Encoder(order="deterministic")


class Decision(msgspec.Struct, frozen=True):
    """What the policy said. `reason` may be shown to the client."""

    allow: bool
    reason: str | None = None


class OpaUnavailable(Exception):
    """No decision: not reached, too late, or not understood. The text is for the log."""


class Opa:
    """Asks one endpoint. Follows no redirect, uses no proxy, and reads no more than a decision can be long."""

    def __init__(
        self,
        settings: GuardrailSettings,
        now: Callable[[], float] = time.monotonic,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = endpoint(settings.opa_endpoint or "")
        self._timeout_s = settings.opa_timeout_s
        self._ttl_s = settings.opa_cache_ttl_s
        self._now = now
        self._cache: OrderedDict[bytes, tuple[float, Decision]] = OrderedDict()
        self._http = httpx.AsyncClient(
            timeout=settings.opa_timeout_s,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            transport=transport,
        )

    async def decide(self, given: Mapping[str, Any]) -> Decision:
        """The decision about an input. Raises OpaUnavailable."""
        body = _canonical.encode({"input": given})
        if not self._ttl_s:
            return await self._ask(body)
        key, now_s = hashlib.sha256(body).digest(), self._now()
        cached = self._cache.get(key)
        if cached is not None and now_s < cached[0]:
            self._cache.move_to_end(key)
            return cached[1]
        decision = await self._ask(body)
        self._cache[key] = (self._now() + self._ttl_s, decision)
        self._cache.move_to_end(key)
        if len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        return decision

    async def close(self) -> None:
        await self._http.aclose()

    async def _ask(self, body: bytes) -> Decision:
        try:
            # httpx limits each step of an exchange; this limits the whole.
            async with asyncio.timeout(self._timeout_s):
                return _decision(await self._fetch(body))
        except TimeoutError:
            raise OpaUnavailable(f"no answer within {self._timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise OpaUnavailable(f"{type(error).__name__}: {error}") from None

    async def _fetch(self, body: bytes) -> bytes:
        headers = {"content-type": "application/json"}
        async with self._http.stream("POST", self.url, content=body, headers=headers) as response:
            if response.status_code != 200:
                raise OpaUnavailable(f"HTTP status {response.status_code}")
            answer = b""
            async for chunk in response.aiter_bytes():
                answer += chunk
                if len(answer) > MAX_ANSWER_BYTES:
                    raise OpaUnavailable(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            return answer


def endpoint(url: str) -> str:
    """The URL to ask; one without a path asks for the package `inferflux`. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        raise ConfigError("guardrails.opa_endpoint: write it as http://HOST:PORT/v1/data/PACKAGE/RULE")
    return parts._replace(path=DEFAULT_PATH).geturl() if parts.path in ("", "/") else url


def _decision(answer: bytes) -> Decision:
    try:
        result = msgspec.json.decode(answer)["result"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise OpaUnavailable("an answer without a result: is there such a rule?") from None
    reason = None
    if isinstance(result, dict):
        reason, result = result.get("reason"), result.get("allow")
    if not isinstance(result, bool):
        raise OpaUnavailable("a result that is neither true nor false, nor an object with `allow`")
    return Decision(result, reason[:MAX_REASON] if isinstance(reason, str) else None)
