"""Who connects where, from settings alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferflux.broker.credentials import CREDENTIALS_FILE, load, resolve
from inferflux.broker.errors import ConfigError
from inferflux.config.settings import BrokerSettings

STAMP, SEAL = "s" * 16, "e" * 16
CLUSTER = BrokerSettings(
    url="nats://n1:4222, tls://n2:4223", user="u", password="hidden", stamp_secret=STAMP, seal_secret=SEAL
)


def test_cluster_of_several_urls() -> None:
    connection = resolve(CLUSTER, "worker")
    assert connection.urls == ("nats://n1:4222", "tls://n2:4223")
    assert connection.inbox_prefix == "_INBOX_worker"
    assert connection.options() == {"user": "u", "password": "hidden"}
    assert (connection.stamp_secret, connection.seal_secret) == (STAMP.encode(), SEAL.encode())


def test_address_shows_no_credentials() -> None:
    connection = resolve(BrokerSettings(url="nats://someone:hidden@n1"), "admin")
    assert connection.address == "nats://n1:4222"


def test_only_workers_hold_the_seal() -> None:
    assert resolve(CLUSTER, "api").seal_secret is None
    assert resolve(CLUSTER, "t-acme").stamp_secret is None
    assert resolve(CLUSTER, "t-acme").inbox_prefix == "_INBOX_t-acme"


@pytest.mark.parametrize(
    ("settings", "role", "names"),
    [
        (BrokerSettings(url="nats://n1", seal_secret=SEAL), "api", "broker.stamp_secret"),
        (BrokerSettings(url="nats://n1", stamp_secret="short", seal_secret=SEAL), "worker", "broker.stamp_secret"),
        (BrokerSettings(url="nats://n1", stamp_secret=STAMP), "worker", "broker.seal_secret"),
        (BrokerSettings(url="nats://n1", credentials="/does/not/exist.creds"), "admin", "exist.creds"),
        (BrokerSettings(url="nats://n1", tls_ca="/does/not/exist.pem"), "admin", "exist.pem"),
    ],
)
def test_what_is_missing_is_named(settings: BrokerSettings, role: str, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        resolve(settings, role)


def test_unreadable_certificate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("not a certificate")
    with pytest.raises(ConfigError, match=r"broker\.tls_ca"):
        resolve(BrokerSettings(url="nats://n1", tls_ca=str(path)), "admin").options()


def test_without_url_and_server_the_fix_is_named(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    with pytest.raises(ConfigError, match=r"inferctl serve.*broker\.url"):
        resolve(BrokerSettings(store_dir=str(tmp_path)), "api")


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / CREDENTIALS_FILE).write_text("{")
    with pytest.raises(ConfigError, match=CREDENTIALS_FILE):
        resolve(BrokerSettings(store_dir=str(tmp_path)), "api")
