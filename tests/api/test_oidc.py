"""Tokens of an OIDC issuer: a real one on this machine signs them, rotates its keys, lies and goes away."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from harness.http import Answer
from harness.issuer import AUDIENCE, Issuer, edwards_key, elliptic_key
from joserfc.jwk import RSAKey

from inferflux.api.oidc import check_settings
from inferflux.broker.errors import ConfigError
from inferflux.config.logs import JsonFormatter
from inferflux.config.settings import AuthSettings, OidcGroup, Settings

DAY_S = 24 * 3600
KEYS, DISCOVERY = "/keys", "/.well-known/openid-configuration"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer().running() as running:
        yield running


@pytest.fixture
def start(apis: Any, issuer: Issuer) -> Callable[..., Any]:
    """Start a replica that trusts the issuer."""

    async def begin(**fields: Any) -> Any:
        settings: Settings = apis.settings
        given = {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE, "oidc_refetch_s": 0.1} | fields
        auth = msgspec.structs.replace(settings.auth, **given)
        return await apis.start(msgspec.structs.replace(settings, auth=auth))

    return begin


async def ask(api: Any, token: str) -> httpx.Response:
    answer: httpx.Response = await api.client.get("/v1/models", headers={"authorization": f"Bearer {token}"})
    return answer


def refusal(answer: httpx.Response) -> str:
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), answer.text
    assert answer.headers["www-authenticate"] == "Bearer"
    return str(answer.json()["error"]["message"])


def read(**claims: Any) -> dict[str, Any]:
    return {"scope": "openid inferflux:read"} | claims


def forged(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None) -> str:
    """A token made by hand: with HMAC under a secret, or without any signature."""
    parts = [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=") for each in (header, claims)]
    body = b".".join(parts)
    mac = b"" if secret is None else hmac.digest(secret, body, hashlib.sha256)
    return (body + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


class TestTokens:
    async def test_a_token_with_the_scope_is_let_in(self, start: Any, issuer: Issuer) -> None:
        api = await start()
        assert (await ask(api, issuer.token(**read()))).status_code == 200
        denied = await ask(api, issuer.token(scope="openid read"))
        assert denied.json()["error"]["code"] == "insufficient_scope"
        assert issuer.asked == [DISCOVERY, KEYS]

    async def test_keys_go_on_beside_tokens(self, start: Any) -> None:
        api = await start()
        assert (await ask(api, "key-all")).status_code == 200
        assert "this API key is not known" in refusal(await ask(api, "a.b.c"))

    @pytest.mark.parametrize("make", [elliptic_key, edwards_key])
    @pytest.mark.filterwarnings("ignore:EdDSA")
    async def test_other_kinds_of_keys(self, start: Any, issuer: Issuer, make: Callable[[], Any]) -> None:
        key = make()
        issuer.keys.append(key)
        api = await start()
        alg = "ES256" if key.key_type == "EC" else "EdDSA"
        assert (await ask(api, issuer.token(key=key, alg=alg, **read()))).status_code == 200

    async def test_without_a_kid_the_only_key_counts(self, start: Any, issuer: Issuer) -> None:
        api = await start()
        assert (await ask(api, issuer.token(header={"kid": None}, **read()))).status_code == 200
        issuer.rotate(keep_old=True)
        second = await start()
        assert "a key that its issuer does not list" in refusal(
            await ask(second, issuer.token(header={"kid": None}, **read()))
        )


class TestRefusals:
    @pytest.mark.parametrize(
        ("claims", "says"),
        [
            ({"iss": "https://evil.example"}, "another issuer"),
            ({"iss": None}, "another issuer"),
            ({"aud": "somebody-else"}, "another audience"),
            ({"aud": ["a", "b"]}, "another audience"),
            ({"aud": None}, "another audience"),
            ({"exp": int(time.time()) - 120}, "has expired"),
            ({"exp": None}, "no expiry"),
            ({"exp": "tomorrow"}, "no number (exp)"),
            ({"nbf": int(time.time()) + DAY_S}, "not valid yet"),
            ({"iat": int(time.time()) + DAY_S}, "not valid yet"),
            ({"sub": None}, "names nobody"),
            ({"sub": 7}, "names nobody"),
        ],
    )
    async def test_a_wrong_claim_is_named(self, start: Any, issuer: Issuer, claims: dict[str, Any], says: str) -> None:
        api = await start()
        assert says in refusal(await ask(api, issuer.token(**read(**claims))))

    async def test_clocks_may_differ_by_the_skew(self, start: Any, issuer: Issuer) -> None:
        api = await start(oidc_skew_s=30.0)
        now_s = int(time.time())
        assert (await ask(api, issuer.token(**read(exp=now_s - 10, nbf=now_s + 10)))).status_code == 200
        assert "has expired" in refusal(await ask(api, issuer.token(**read(exp=now_s - 40))))

    async def test_no_signature_is_none(self, start: Any, issuer: Issuer) -> None:
        api = await start()
        claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "eve", "exp": time.time() + 60, "scope": "inferflux:admin"}
        for alg in ("none", "None", "nOnE", ""):
            assert "algorithm other than" in refusal(await ask(api, forged({"alg": alg}, claims, None)))

    async def test_the_public_key_is_no_shared_secret(self, start: Any, issuer: Issuer) -> None:
        api = await start()
        key: RSAKey = issuer.keys[0]
        claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "eve", "exp": time.time() + 60, "scope": "inferflux:admin"}
        pem = key.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        for secret in (pem, pem.strip(), key.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)):
            for alg in ("HS256", "RS256"):
                token = forged({"alg": alg, "kid": key.kid}, claims, secret)
                message = refusal(await ask(api, token))
                assert "algorithm other than" in message or "no valid signature" in message

    async def test_a_symmetric_key_in_the_set_is_not_taken(self, start: Any, issuer: Issuer) -> None:
        secret = b"a secret that everybody can read"
        listed = {
            "kty": "oct",
            "kid": "rsa-1",
            "alg": "RS256",
            "k": base64.urlsafe_b64encode(secret).decode().rstrip("="),
        }
        issuer.answers[KEYS] = Answer(200, {"keys": [listed, issuer.keys[0].as_dict(private=False) | {"kid": "other"}]})
        api = await start()
        claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "eve", "exp": time.time() + 60, "scope": "inferflux:admin"}
        token = forged({"alg": "RS256", "kid": "rsa-1"}, claims, secret)
        assert "does not list" in refusal(await ask(api, token))

    async def test_another_signature_is_refused(self, start: Any, issuer: Issuer) -> None:
        api = await start()
        stranger = RSAKey.generate_key(2048, {"kid": issuer.keys[0].kid})
        assert "no valid signature" in refusal(await ask(api, issuer.token(key=stranger, **read())))
        head, body, mac = issuer.token(**read()).split(".")
        more = base64.urlsafe_b64encode(base64.urlsafe_b64decode(body + "==").replace(b"read", b"admi")).decode()
        assert "no valid signature" in refusal(await ask(api, f"{head}.{more.rstrip('=')}.{mac}"))

    async def test_a_key_for_another_algorithm_or_use_is_not_taken(self, start: Any, issuer: Issuer) -> None:
        listed = issuer.keys[0].as_dict(private=False)
        for odd in ({"alg": "RS512"}, {"use": "enc"}):
            issuer.answers[KEYS] = Answer(200, {"keys": [listed | odd, elliptic_key().as_dict(private=False)]})
            assert "does not list" in refusal(await ask(await start(), issuer.token(**read())))

    @pytest.mark.parametrize(
        "token", ["eyJ.x.y", "eyJhbGciOiJSUzI1NiJ9..", "eyJ" + "a" * 20_000 + ".b.c", "eyJ\u00e9.a.b"]
    )
    async def test_what_is_no_token_is_refused(self, start: Any, token: str) -> None:
        api = await start()
        answer = await api.client.get("/v1/models", headers=[(b"authorization", f"Bearer {token}".encode())])
        assert "this token" in refusal(answer)

    async def test_no_token_is_repeated_in_an_error_or_in_the_log(
        self, start: Any, issuer: Issuer, caplog: pytest.LogCaptureFixture
    ) -> None:
        api = await start()
        token = issuer.token(**read(iss="https://evil.example"))
        answer = await ask(api, token)
        logged = "".join(map(JsonFormatter("api").format, caplog.records))
        assert token.split(".")[2] not in answer.text + logged


class TestKeys:
    async def test_a_rotated_key_is_fetched_at_once_and_the_old_one_is_gone(self, start: Any, issuer: Issuer) -> None:
        api = await start()
        old = issuer.token(**read())
        assert (await ask(api, old)).status_code == 200
        issuer.rotate()
        await asyncio.sleep(0.1)
        assert (await ask(api, issuer.token(**read()))).status_code == 200
        assert issuer.asked.count(KEYS) == 2
        assert "does not list" in refusal(await ask(api, old))

    async def test_unknown_kids_do_not_flood_the_issuer(self, start: Any, issuer: Issuer) -> None:
        api = await start(oidc_refetch_s=60.0)
        assert (await ask(api, issuer.token(**read()))).status_code == 200
        tokens = [issuer.token(header={"kid": f"made-up-{number}"}, **read()) for number in range(20)]
        answers = await asyncio.gather(*(ask(api, token) for token in tokens))
        assert all("does not list" in refusal(answer) for answer in answers)
        assert issuer.asked.count(KEYS) == 1

    async def test_many_first_tokens_fetch_once(self, start: Any, issuer: Issuer) -> None:
        api = await start()
        answers = await asyncio.gather(*(ask(api, issuer.token(**read())) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert issuer.asked == [DISCOVERY, KEYS]

    async def test_while_the_issuer_is_down_known_keys_last_for_a_while(self, start: Any, issuer: Issuer) -> None:
        api = await start(oidc_jwks_ttl_s=0.0, oidc_jwks_stale_s=60.0, oidc_refetch_s=0.1)
        assert (await ask(api, issuer.token(**read()))).status_code == 200
        issuer.down = True
        assert (await ask(api, issuer.token(**read()))).status_code == 200
        later_s = time.monotonic() + 60.0
        api.parts.gate._oidc._jwks._now_s = lambda: later_s
        answer = await ask(api, issuer.token(**read()))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "identity_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        issuer.down = False
        later_s += 1.0
        assert (await ask(api, issuer.token(**read()))).status_code == 200

    async def test_an_unknown_kid_while_the_issuer_is_down_may_be_a_new_one(self, start: Any, issuer: Issuer) -> None:
        api = await start()
        assert (await ask(api, issuer.token(**read()))).status_code == 200
        issuer.down = True
        await asyncio.sleep(0.1)
        answer = await ask(api, issuer.token(header={"kid": "new"}, **read()))
        assert answer.status_code == 503

    @pytest.mark.parametrize(
        ("path", "answer"),
        [
            (DISCOVERY, Answer(200, {"issuer": "https://evil.example", "jwks_uri": "https://evil.example/keys"})),
            (DISCOVERY, Answer(302, b"", {"Location": "/elsewhere"})),
            (DISCOVERY, Answer(200, b"[]")),
            (KEYS, Answer(200, b"x" * 600_000)),
            (KEYS, Answer(200, b"not json")),
            (KEYS, Answer(200, {"keys": []})),
            (KEYS, Answer(200, {"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]})),
            (KEYS, Answer(200, {"keys": [{}] * 1000})),
        ],
    )
    async def test_keys_that_cannot_be_trusted_are_not_taken(
        self, start: Any, issuer: Issuer, path: str, answer: Answer
    ) -> None:
        issuer.answers[path] = answer
        assert (await ask(await start(), issuer.token(**read()))).status_code == 503

    @pytest.mark.parametrize(
        "uri", ["http://169.254.169.254/keys", "file:///etc/passwd", "ftp://127.0.0.1/x", "", 7, None]
    )
    async def test_discovery_cannot_send_us_anywhere(self, start: Any, issuer: Issuer, uri: Any) -> None:
        issuer.answers[DISCOVERY] = Answer(200, {"issuer": issuer.url, "jwks_uri": uri})
        assert (await ask(await start(), issuer.token(**read()))).status_code == 503
        assert issuer.asked == [DISCOVERY]


class TestClaims:
    GROUPS = (
        OidcGroup(group="ml-ops", scopes=("read", "admin"), tenant="bounded"),
        OidcGroup(group="guests", scopes=("read",), tenant="visitors", models=("big",)),
        OidcGroup(group="demo", models=("pretend",)),
    )

    async def tenants(self, api: Any, **claims: Any) -> Any:
        return await api.parts.gate.authenticate(f"Bearer {claims.pop('issuer').token(**claims)}")

    async def test_groups_give_scopes_a_tenant_and_models(self, start: Any, issuer: Issuer) -> None:
        api = await start(oidc_groups=self.GROUPS)
        ops = await self.tenants(api, issuer=issuer, groups=["ml-ops", "other"])
        assert (ops.scopes, ops.tenant.id, ops.models) == ({"read", "admin"}, "bounded", frozenset())
        assert ops.tenant.max_queued == 2
        guest = await self.tenants(api, issuer=issuer, groups=["demo", "guests"], scope="inferflux:generate")
        assert (guest.scopes, guest.tenant.id) == ({"read", "generate"}, "visitors")
        assert guest.models == {"big", "pretend"}
        both = await self.tenants(api, issuer=issuer, groups=["guests", "ml-ops"])
        assert (both.tenant.id, both.models) == ("bounded", frozenset())
        one = await self.tenants(api, issuer=issuer, groups="guests")
        assert one.tenant.id == "visitors"

    async def test_who_has_no_tenant_is_one_of_their_own(self, start: Any, issuer: Issuer) -> None:
        api = await start()
        ann, again, bob = [
            await self.tenants(api, issuer=issuer, sub=sub, tenant="acme", **read()) for sub in ("ann", "ann", "bob")
        ]
        assert ann.tenant.id == again.tenant.id != bob.tenant.id
        assert ann.tenant.id.startswith("user-")
        assert ann.key_id != bob.key_id

    async def test_a_claim_names_the_tenant_where_the_settings_say_so(self, start: Any, issuer: Issuer) -> None:
        api = await start(oidc_tenant_claim="org", oidc_scope_claim="scp", oidc_scope_prefix="")
        found = await self.tenants(api, issuer=issuer, org="acme", scp=["read", "generate", "root"])
        assert (found.tenant.id, found.scopes) == ("acme", {"read", "generate"})
        for odd in ("", "x" * 300, 7, ["acme"]):
            assert "no tenant's name" in refusal(await ask(api, issuer.token(org=odd, scp=["read"])))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"oidc_issuer": "https://id.example"}, "auth.oidc_audience"),
        ({"oidc_audience": "me"}, "auth.oidc_issuer"),
        ({"oidc_issuer": "http://id.example", "oidc_audience": "me"}, "https"),
        ({"oidc_issuer": "id.example", "oidc_audience": "me"}, "https"),
        ({"oidc_issuer": "https://u:p@id.example", "oidc_audience": "me"}, "plain URL"),
        ({"oidc_issuer": "https://id.example?x", "oidc_audience": "me"}, "plain URL"),
        ({"oidc_issuer": "https://id.example", "oidc_audience": "me", "oidc_algorithms": ()}, "oidc_algorithms"),
        (
            {
                "oidc_issuer": "https://i",
                "oidc_audience": "me",
                "oidc_groups": (OidcGroup(group="g", tenant="x" * 300),),
            },
            r"oidc_groups\[0\]",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_settings(AuthSettings(**fields))
