"""TLS: the server is verified, and the client where the server asks for it."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from harness.nats import NatsServers, settings_for_tests

from inferflux.broker.credentials import Connection
from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import Lane, ServiceClass

pytestmark = pytest.mark.integration


def write_certificate(path: Path, name: str) -> None:
    """A self-signed certificate for 127.0.0.1, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (path / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (path / f"{name}.key").write_bytes(private)


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[NatsServers]:
    for name in ("server", "client", "stranger"):
        write_certificate(tmp_path, name)
    tls = (
        f'\ntls {{ cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.key", '
        f'ca_file: "{tmp_path}/client.pem", verify: true }}\n'
    )
    servers = NatsServers(tmp_path / "nats", settings_for_tests(), tls=tls)
    servers.start_all()
    yield servers
    servers.close()


def with_tls(servers: NatsServers, path: Path, ca: str, client: str | None) -> Connection:
    return msgspec.structs.replace(
        servers.connection("api"),
        tls_ca=str(path / f"{ca}.pem"),
        tls_cert=None if client is None else str(path / f"{client}.pem"),
        tls_key=None if client is None else str(path / f"{client}.key"),
    )


async def test_prompts_travel_over_tls(secure: NatsServers, tmp_path: Path) -> None:
    connection = with_tls(secure, tmp_path, "server", "client")
    broker = await JetStreamBroker.connect(secure.settings, "api", "test", connection=connection)
    await broker.publish_prompt(Lane("m", ServiceClass.DEFAULT, "acme"), b"x", msg_id="1")
    assert sum((await broker.backlog()).values()) == 1
    await broker.close()


@pytest.mark.parametrize(("ca", "client"), [("stranger", "client"), ("server", "stranger"), ("server", None)])
async def test_strangers_are_refused(secure: NatsServers, tmp_path: Path, ca: str, client: str | None) -> None:
    connection = with_tls(secure, tmp_path, ca, client)
    with pytest.raises(BrokerUnavailable, match="cannot reach NATS"):
        await JetStreamBroker.connect(secure.settings, "api", "test", connection=connection, deadline_s=1.0)
