"""Who connects where: from settings when `broker.url` is set, else from the running embedded server's store."""

from __future__ import annotations

import importlib.util
import secrets
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from inferflux.config.settings import BrokerSettings

from . import subjects
from .errors import ConfigError

ROLE_ADMIN = "admin"
ROLE_API = "api"
ROLE_WORKER = "worker"
CREDENTIALS_FILE = "credentials.json"
MIN_SECRET = 16
SECRET_BYTES = 32


class Login(msgspec.Struct, frozen=True):
    """One NATS user."""

    user: str
    password: str


class StoredCredentials(msgspec.Struct, frozen=True):
    """What an embedded server keeps in `credentials.json`; roles are admin, api, worker and `t-<tenant>`. `url` may
    hold several, separated by commas."""

    url: str
    logins: dict[str, Login]
    stamp_secret: str
    seal_secret: str


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """All that one process needs to join: never log it. Secrets are None for roles that must not have them."""

    urls: tuple[str, ...]
    inbox_prefix: str
    user: str | None = None
    password: str | None = None
    credentials_file: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    stamp_secret: bytes | None = None
    seal_secret: bytes | None = None

    @property
    def address(self) -> str:
        """The servers without credentials, for messages."""
        parts = (urlsplit(url) for url in self.urls)
        return ", ".join(f"{each.scheme}://{each.hostname}:{each.port or 4222}" for each in parts)

    def options(self) -> dict[str, Any]:
        """Arguments for nats-py's `connect`."""
        options: dict[str, Any] = {}
        if self.credentials_file is not None:
            if importlib.util.find_spec("nkeys") is None:
                raise ConfigError("broker.credentials needs one more package: pip install nkeys")
            options["user_credentials"] = self.credentials_file
        elif self.user is not None:
            options |= {"user": self.user, "password": self.password or ""}
        if self.tls_ca is not None or self.tls_cert is not None:
            options["tls"] = self._tls_context()
        return options

    def _tls_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"broker.tls_ca, broker.tls_cert or broker.tls_key cannot be read: {error}") from error
        return context


def tenant_role(tenant: str) -> str:
    """The role of a tenant that publishes straight to NATS."""
    return subjects.tenant_owner(tenant)


def resolve(settings: BrokerSettings, role: str) -> Connection:
    """The connection of one role. Raises ConfigError that says what is missing and where to set it."""
    if settings.url is not None:
        return _external(settings, role)
    stored = load(Path(settings.store_dir))
    if stored is None:
        raise ConfigError(
            f"no broker: start `inferctl serve` (its credentials belong in {settings.store_dir}) or set broker.url"
        )
    login = stored.logins.get(role)
    if login is None:
        raise ConfigError(
            f"{settings.store_dir}/{CREDENTIALS_FILE} has no credentials for {role!r}: "
            "give the tenant `publish: true` and restart `inferctl serve`"
        )
    return Connection(
        urls=_split(stored.url),
        inbox_prefix=subjects.inbox_prefix(role),
        user=login.user,
        password=login.password,
        stamp_secret=_secret(
            settings.stamp_secret or stored.stamp_secret, "stamp_secret", role, (ROLE_API, ROLE_WORKER)
        ),
        seal_secret=_secret(settings.seal_secret or stored.seal_secret, "seal_secret", role, (ROLE_WORKER,)),
    )


def load(store_dir: Path) -> StoredCredentials | None:
    """The credentials that an embedded server left in its store, or None when there are none."""
    return load_file(store_dir / CREDENTIALS_FILE)


def load_file(path: Path) -> StoredCredentials | None:
    """The credentials in a file, or None when there is none. Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=StoredCredentials)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}; stop the server, delete the file and start again"
        ) from error


def completed(kept: StoredCredentials | None, roles: Iterable[str], url: str) -> StoredCredentials:
    """The kept logins of these roles, new ones for those that have none, and the kept secrets."""
    logins = kept.logins if kept is not None else {}
    return StoredCredentials(
        url=url,
        logins={role: logins.get(role) or Login(role, _new_secret()) for role in roles},
        stamp_secret=kept.stamp_secret if kept is not None else _new_secret(),
        seal_secret=kept.seal_secret if kept is not None else _new_secret(),
    )


def _new_secret() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)


def _external(settings: BrokerSettings, role: str) -> Connection:
    assert settings.url is not None
    for file in (settings.credentials, settings.tls_ca, settings.tls_cert, settings.tls_key):
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"{file}, which the broker settings name, does not exist")
    return Connection(
        urls=_split(settings.url),
        inbox_prefix=subjects.inbox_prefix(role),
        user=settings.user,
        password=settings.password,
        credentials_file=settings.credentials,
        tls_ca=settings.tls_ca,
        tls_cert=settings.tls_cert,
        tls_key=settings.tls_key,
        stamp_secret=_secret(settings.stamp_secret, "stamp_secret", role, (ROLE_API, ROLE_WORKER)),
        seal_secret=_secret(settings.seal_secret, "seal_secret", role, (ROLE_WORKER,)),
    )


def _split(urls: str) -> tuple[str, ...]:
    return tuple(url.strip() for url in urls.split(",") if url.strip())


def _secret(value: str | None, name: str, role: str, holders: tuple[str, ...]) -> bytes | None:
    if role not in holders:
        return None
    if value is None or len(value) < MIN_SECRET:
        raise ConfigError(
            f"broker.{name} must be set to the same {MIN_SECRET} or more characters in every process that needs it: "
            f"{' and '.join(holders)}"
        )
    return value.encode()
