"""`inferctl backup`, a wiped store, `inferctl restore`: everything is back, and the restored store answers."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from harness.cluster import TlsCluster
from harness.server import KEY, PUBLISHER, TENANT, running_server, tenants

from inferflux.broker.embedded import EmbeddedServer
from inferflux.broker.errors import Code
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import (
    BUCKET_BATCHES,
    BUCKET_POLICY,
    BUCKET_REGISTRY,
    BUCKET_TENANTS,
    OBJECTS_FILES,
    Lane,
    RequestKey,
    ServiceClass,
    tenant_owner,
)
from inferflux.broker.wire.requests import failure
from inferflux.config import load
from inferflux.config.settings import BrokerSettings, Settings
from inferflux.registry.deadletters import DeadLetters

pytestmark = pytest.mark.integration

LANE = Lane("stub", ServiceClass.DEFAULT, PUBLISHER)
FILE = bytes(range(256)) * 4096
ENTRIES = {
    BUCKET_REGISTRY: ("spare", b'{"models":[]}'),
    BUCKET_POLICY: ("spare", b"\x00 sealed"),
    BUCKET_TENANTS: ("tenant.spare", b"{}"),
    BUCKET_BATCHES: ("batch-1", b'{"state":"running"}'),
}


def prompt(number: int) -> bytes:
    return msgspec.json.encode({"type": "completion", "id": f"r{number}", "prompt": "hi", "max_tokens": 4})


async def fill(broker: JetStreamBroker) -> None:
    """A queue, and something in everything that a control plane keeps."""
    for number in range(3):
        await broker.publish_prompt(LANE, prompt(number), msg_id=f"r{number}")
    for bucket, (key, value) in ENTRIES.items():
        await (await broker.bucket(bucket)).put(key, value)
    dead = RequestKey(tenant_owner(TENANT), "dead")
    reason = failure(Code.ATTEMPTS_EXHAUSTED, "given up")
    await DeadLetters(broker).bury(dead, LANE, {}, prompt(9), reason=reason, lost=())
    chunks = broker.chunks(OBJECTS_FILES)
    await chunks.put("file-1", 0, FILE, fresh=True)
    await chunks.describe("file-1", b'{"bytes":1048576}')


async def look(broker: JetStreamBroker) -> dict[str, Any]:
    """All of that, with the sequences that compare-and-set rests on."""
    found: dict[str, Any] = {"backlog": await broker.backlog(), "seqs": []}
    after = 0
    while stored := await broker.next_prompt(after):
        after = stored.seq
        found["seqs"].append((stored.seq, stored.body))
    for bucket, (key, _) in ENTRIES.items():
        found[bucket] = await (await broker.bucket(bucket)).get(key)
    found["dead"] = await DeadLetters(broker).all()
    chunks = broker.chunks(OBJECTS_FILES)
    found["file"] = (await chunks.get("file-1", 0), await chunks.about("file-1"))
    return found


async def look_until(broker: JetStreamBroker, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """What `look` finds once that holds, or at last: in a cluster whichever server answers lists, and it may lag."""
    deadline_s = time.monotonic() + 60
    while not holds(found := await look(broker)) and time.monotonic() < deadline_s:
        await asyncio.sleep(0.1)
    return found


def is_filled(found: dict[str, Any]) -> bool:
    return len(found["seqs"]) == 3 and all(found[bucket] for bucket in ENTRIES) and all((found["dead"], *found["file"]))


def inferctl(*arguments: object, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inferflux.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environ)


async def test_a_wiped_store_comes_back_and_answers(tmp_path: Path) -> None:
    broker_settings = BrokerSettings(port=0, store_dir=str(tmp_path / "nats"))
    settings = Settings(broker=broker_settings, tenants=tenants())
    config = tmp_path / "backup.yaml"
    config.write_text(yaml.safe_dump({"broker": {"port": 0, "store_dir": str(tmp_path / "nats")}}))
    server = EmbeddedServer(settings)
    await server.start()
    broker = await JetStreamBroker.connect(settings, "api", "test")
    await fill(broker)
    before = await look(broker)
    saved = inferctl("backup", tmp_path / "backup.tar", "--config", config)
    await broker.close()
    await server.stop()
    assert saved.returncode == 0, saved.stderr
    assert (tmp_path / "backup.tar").stat().st_mode & 0o077 == 0

    shutil.rmtree(tmp_path / "nats")
    restored = inferctl("restore", tmp_path / "backup.tar", "--config", config)
    assert restored.returncode == 0, restored.stderr

    await server.start()
    broker = await JetStreamBroker.connect(settings, "api", "test")
    assert await look(broker) == before
    await broker.close()
    await server.stop()
    with running_server(tmp_path) as running:
        running.wait_until("the queue is answered", lambda: not running.get("/v1/admin/queue").json()["data"])
        (letter,) = running.get("/v1/admin/queue/dead").json()["data"]
        assert letter["request"] == "dead"
        assert running.get("/v1/models", key=KEY).status_code == 200


async def test_what_is_there_is_deleted_only_when_told(tmp_path: Path) -> None:
    config = tmp_path / "server.yaml"
    config.write_text(yaml.safe_dump({"broker": {"port": 0, "store_dir": str(tmp_path / "nats")}}))
    settings = Settings(broker=BrokerSettings(port=0, store_dir=str(tmp_path / "nats")))
    server = EmbeddedServer(settings)
    await server.start()
    assert inferctl("backup", tmp_path / "empty.tar", "--config", config).returncode == 0
    broker = await JetStreamBroker.connect(settings, "api", "test")
    await broker.publish_prompt(LANE, prompt(1), msg_id="r1")
    await broker.close()
    held = inferctl("restore", tmp_path / "empty.tar", "--config", config)
    assert held.returncode != 0
    assert "is in use by process" in held.stderr
    await server.stop()
    refused = inferctl("restore", tmp_path / "empty.tar", "--config", config)
    assert refused.returncode == 1
    assert "PROMPTS (1 messages)" in refused.stderr
    assert inferctl("restore", tmp_path / "empty.tar", "--config", config, "--replace").returncode == 0


@pytest.mark.parametrize("harm", ["cut", "changed", "other"])
def test_a_damaged_backup_is_refused_before_anything_is_touched(tmp_path: Path, harm: str, saved: bytes) -> None:
    path = tmp_path / "harmed.tar"
    at = saved.index(b"streams/PROMPTS") + 512 + 20
    wrong = {"cut": saved[: len(saved) // 2], "changed": saved[:at] + b"XXXX" + saved[at + 4 :], "other": b"text"}
    path.write_bytes(wrong[harm])
    done = inferctl("restore", path, "--set", f"broker.store_dir={tmp_path / 'nats'}", "--set", "broker.port=0")
    assert done.returncode == 1
    assert "no whole backup" in done.stderr or "is damaged" in done.stderr
    assert not (tmp_path / "nats").exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good backup of an embedded server."""
    folder = tmp_path_factory.mktemp("saved")

    async def make() -> None:
        server = EmbeddedServer(Settings(broker=BrokerSettings(port=0, store_dir=str(folder / "nats"))))
        await server.start()
        sets = ["--set", f"broker.store_dir={folder / 'nats'}"]
        done = await asyncio.to_thread(inferctl, "backup", folder / "b.tar", *sets)
        assert done.returncode == 0, done.stderr
        await server.stop()

    asyncio.run(make())
    return (folder / "b.tar").read_bytes()


@pytest.mark.cluster
async def test_a_cluster_with_tls_is_saved_and_restored_in_place(tmp_path: Path) -> None:
    with TlsCluster(tmp_path) as cluster:
        broker = await JetStreamBroker.connect(cluster.settings("api"), "api", "test", deadline_s=120)
        await fill(broker)
        before = await look_until(broker, is_filled)
        assert is_filled(before)
        environ = {"PATH": "", **cluster.environ("admin")}
        saved = inferctl("backup", tmp_path / "backup.tar", environ=environ)
        assert saved.returncode == 0, saved.stderr
        await (await broker.bucket(BUCKET_POLICY)).put("spare", b"changed since")
        await broker.drop_prompt(before["seqs"][0][0])
        restored = inferctl("restore", tmp_path / "backup.tar", "--replace", environ=environ)
        assert restored.returncode == 0, restored.stderr
        assert await look_until(broker, lambda found: found == before) == before
        await broker.close()


def test_settings_of_an_external_broker_need_no_secrets_for_a_backup(tmp_path: Path) -> None:
    environ = {"INFERFLUX_BROKER_URL": "nats://127.0.0.1:1", "INFERFLUX_BROKER_USER": "admin"}
    assert load.load(None, environ).settings.broker.user == "admin"
    done = inferctl("backup", tmp_path / "b.tar", environ={"PATH": "", **environ})
    assert done.returncode == 1
    assert "cannot reach NATS" in done.stderr
    assert not (tmp_path / "b.tar").exists()
