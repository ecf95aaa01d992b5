"""OpenID Connect: a token that an issuer has signed becomes a principal (RFC 7519, OpenID Connect Core 1.0)."""

from __future__ import annotations

import hashlib
import time
import warnings
from typing import Any, get_args
from urllib.parse import urlsplit

from joserfc import jws, jwt
from joserfc.errors import JoseError, SecurityWarning

from inferflux.broker.errors import Code, ConfigError, RequestError
from inferflux.broker.subjects import encode_token
from inferflux.config.settings import AuthSettings, OidcGroup, Scope
from inferflux.registry.tenants import Principal, Tenants

from .jwks import IssuerUnavailable, Jwks, is_loopback

MAX_TOKEN = 16 * 1024
_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))


class Oidc:
    """Checks signature, issuer, audience, times and algorithm, and maps claims to scopes and a tenant."""

    def __init__(self, settings: AuthSettings, tenants: Tenants, jwks: Jwks) -> None:
        self._settings = settings
        self._tenants = tenants
        self._jwks = jwks

    @classmethod
    def from_settings(cls, settings: AuthSettings, tenants: Tenants) -> Oidc | None:
        """None where no issuer is set. Raises ConfigError."""
        check_settings(settings)
        return None if settings.oidc_issuer is None else cls(settings, tenants, Jwks(settings))

    async def principal(self, token: str) -> Principal:
        """Raises RequestError: 401 that says what is wrong with the token, 503 while the issuer's keys are away."""
        return self._principal(await self._verified(token))

    async def close(self) -> None:
        await self._jwks.close()

    async def _verified(self, token: str) -> dict[str, Any]:
        kid, algorithm = self._header(token)
        try:
            found = await self._jwks.find(kid, algorithm)
        except IssuerUnavailable as error:
            raise RequestError(
                Code.IDENTITY_UNAVAILABLE,
                "the identity provider's keys cannot be had right now; try again shortly",
                retry_after_s=error.retry_s,
            ) from error
        if found is None:
            raise _refused("is signed with a key that its issuer does not list")
        try:
            with warnings.catch_warnings():
                # RFC 9864 renames EdDSA, which issuers still write.
                warnings.simplefilter("ignore", SecurityWarning)
                claims = jwt.decode(token, found.key, algorithms=[algorithm]).claims
        except (JoseError, ValueError, TypeError):
            raise _refused("has no valid signature") from None
        self._check(claims, time.time())
        return claims

    def _header(self, token: str) -> tuple[str | None, str]:
        if len(token) > MAX_TOKEN:
            raise _refused(f"is longer than {MAX_TOKEN} characters")
        try:
            header = jws.extract_compact(token.encode()).headers()
        except (JoseError, ValueError, TypeError, AttributeError):
            raise _refused("is no signed JSON web token") from None
        kid, algorithm = header.get("kid"), header.get("alg")
        if algorithm not in self._settings.oidc_algorithms:
            raise _refused(f"is signed by an algorithm other than {', '.join(self._settings.oidc_algorithms)}")
        if not isinstance(kid, str | None):
            raise _refused("has a kid that is no text")
        return kid, str(algorithm)

    def _check(self, claims: dict[str, Any], now_s: float) -> None:
        audience, skew_s = claims.get("aud"), self._settings.oidc_skew_s
        if claims.get("iss") != self._settings.oidc_issuer:
            raise _refused("comes from another issuer")
        if self._settings.oidc_audience not in (audience if isinstance(audience, list) else [audience]):
            raise _refused("is meant for another audience")
        expires_s = _time(claims, "exp")
        if expires_s is None:
            raise _refused("has no expiry (exp)")
        if now_s >= expires_s + skew_s:
            raise _refused("has expired")
        if any(now_s < start_s - skew_s for name in ("nbf", "iat") if (start_s := _time(claims, name)) is not None):
            raise _refused("is not valid yet")
        if not isinstance(claims.get("sub"), str) or not claims["sub"]:
            raise _refused("names nobody (sub)")

    def _principal(self, claims: dict[str, Any]) -> Principal:
        given = self._settings
        groups = _texts(claims.get(given.oidc_groups_claim), separated=False)
        matching = [each for each in given.oidc_groups if each.group in groups]
        said = _texts(claims.get(given.oidc_scope_claim))
        scopes = {scope for scope in _SCOPES if given.oidc_scope_prefix + scope in said}
        scopes.update(*(each.scopes for each in matching))
        # A group without models of its own allows all, and so does a token that no group speaks for.
        bound = bool(matching) and all(each.models for each in matching)
        subject = hashlib.sha256(f"{claims['iss']}\n{claims['sub']}".encode()).hexdigest()[:12]
        return Principal(
            tenant=self._tenants.tenant(self._tenant(claims, matching) or f"user-{subject}"),
            scopes=frozenset(scopes),
            models=frozenset(model for each in matching for model in each.models) if bound else frozenset(),
            key_id=f"oidc-{subject}",
        )

    def _tenant(self, claims: dict[str, Any], matching: list[OidcGroup]) -> str | None:
        claim = self._settings.oidc_tenant_claim
        if claim is not None and claim in claims:
            try:
                encode_token(claims[claim])
            except (ValueError, TypeError, AttributeError):
                raise _refused(f"has no tenant's name in its claim {claim!r}") from None
            return str(claims[claim])
        return next((each.tenant for each in matching if each.tenant is not None), None)


def looks_like_token(bearer: str) -> bool:
    """Whether this is a signed token's form, and so a matter of the issuer's: three parts, the first a JSON object."""
    return bearer.startswith("eyJ") and bearer.count(".") == 2


def check_settings(settings: AuthSettings) -> None:
    """Raises ConfigError for an issuer without an audience, or one that tokens could be forged for on the way."""
    issuer, audience = settings.oidc_issuer, settings.oidc_audience
    if (issuer is None) != (audience is None):
        has, lacks = ("oidc_issuer", "oidc_audience") if issuer else ("oidc_audience", "oidc_issuer")
        raise ConfigError(f"auth.{has} also needs auth.{lacks}")
    if issuer is None:
        return
    parts = urlsplit(issuer)
    if (
        not parts.hostname
        or parts.scheme not in ("https", "http")
        or (parts.scheme == "http" and not is_loopback(issuer))
    ):
        raise ConfigError("auth.oidc_issuer must be an https URL (http is for an issuer on this machine)")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError("auth.oidc_issuer must be a plain URL, without user, query and fragment")
    if not settings.oidc_algorithms:
        raise ConfigError("auth.oidc_algorithms must name at least one algorithm")
    for number, group in enumerate(settings.oidc_groups):
        if group.tenant is not None:
            try:
                encode_token(group.tenant)
            except ValueError as error:
                raise ConfigError(f"auth.oidc_groups[{number}].tenant: {error}") from None


def _refused(what: str) -> RequestError:
    return RequestError(Code.INVALID_API_KEY, f"this token {what}")


def _time(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(f"has a time that is no number ({name})")
    return value


def _texts(claim: object, *, separated: bool = True) -> list[str]:
    """A claim that is a list, or one text: scopes are separated by spaces (RFC 8693)."""
    if isinstance(claim, str):
        return claim.split() if separated else [claim]
    return [each for each in claim if isinstance(each, str)] if isinstance(claim, list) else []
