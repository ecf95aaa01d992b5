"""prepare.py: three NATS nodes with its certificates and users accept its clients, and nobody else."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from harness.checkout import ROOT
from harness.cluster import TlsCluster

from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import Lane, ServiceClass

pytestmark = [pytest.mark.integration, pytest.mark.cluster]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsCluster]:
    with TlsCluster(tmp_path_factory.mktemp("fleet")) as running:
        yield running


def prepare(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "deploy" / "nats" / "prepare.py", "--out", out, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def test_roles_meet_over_tls(cluster: TlsCluster) -> None:
    api = await JetStreamBroker.connect(cluster.settings("api"), "api", "test", deadline_s=120)
    worker = await JetStreamBroker.connect(cluster.settings("worker"), "worker", "test", deadline_s=120)
    await api.publish_prompt(Lane("m", ServiceClass.DEFAULT, "acme"), b"x", msg_id="1")
    assert sum((await worker.backlog("m")).values()) == 1
    await worker.close()
    await api.close()


async def test_a_client_without_the_authority_does_not_get_in(cluster: TlsCluster, tmp_path: Path) -> None:
    made = prepare(tmp_path / "other", "--node", "n")
    assert made.returncode == 0, made.stderr
    settings = cluster.settings("api")
    broker = msgspec.structs.replace(settings.broker, tls_ca=str(tmp_path / "other" / "ca.pem"))
    with pytest.raises(BrokerUnavailable):
        await JetStreamBroker.connect(msgspec.structs.replace(settings, broker=broker), "api", "test", deadline_s=1)


def test_secrets_are_for_their_owner_and_their_role(tmp_path: Path) -> None:
    assert prepare(tmp_path / "s", "--node", "a=10.0.0.1,a.example", "--publisher", "acme:batch").returncode == 0
    for file in (tmp_path / "s").iterdir():
        mode = stat.S_IMODE(file.stat().st_mode)
        assert mode == (0o644 & ~_umask() if file.suffix == ".pem" else 0o600), file.name
    api, worker = (dict(_lines(tmp_path / "s" / f"{role}.env")) for role in ("api", "worker"))
    assert "INFERFLUX_BROKER_SEAL_SECRET" not in api
    assert api["INFERFLUX_BROKER_STAMP_SECRET"] == worker["INFERFLUX_BROKER_STAMP_SECRET"]
    assert api["INFERFLUX_BROKER_URL"] == "tls://10.0.0.1:4222"
    certificate = ssl._ssl._test_decode_cert(str(tmp_path / "s" / "a.pem"))  # type: ignore[attr-defined]
    assert set(certificate["subjectAltName"]) == {("DNS", "a"), ("IP Address", "10.0.0.1"), ("DNS", "a.example")}


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    assert prepare(tmp_path / "s", "--node", "a").returncode == 0
    before = (tmp_path / "s" / "credentials.json").read_bytes()
    again = prepare(tmp_path / "s", "--node", "a")
    assert again.returncode == 0
    assert "nothing was changed" in again.stderr
    assert (tmp_path / "s" / "credentials.json").read_bytes() == before


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        name, _, value = line.partition("=")
        yield name, value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
