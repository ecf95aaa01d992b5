"""The cluster template and its users, as an operator would make them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from inferflux.broker.credentials import StoredCredentials
from inferflux.broker.embedded import find_binary

DEPLOY = Path(__file__).parents[2] / "deploy" / "nats"

pytestmark = pytest.mark.integration


def make_users(where: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, DEPLOY / "make_users.py", *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, timeout=60)


def test_made_users_and_the_template_are_a_valid_configuration(tmp_path: Path) -> None:
    made = make_users(tmp_path, "--publisher", "acme:default,batch")
    assert made.returncode == 0, made.stderr
    stored = msgspec.json.decode(made.stdout, type=StoredCredentials)
    assert set(stored.logins) == {"admin", "api", "worker", "t-acme"}
    assert stat.S_IMODE((tmp_path / "users.conf").stat().st_mode) == 0o600
    (tmp_path / "cluster.conf").write_text((DEPLOY / "cluster.conf").read_text())
    environ = os.environ | {
        "NATS_NAME": "n1",
        "NATS_LISTEN": "127.0.0.1:4222",
        "NATS_CLUSTER_LISTEN": "127.0.0.1:6222",
        "NATS_ROUTES": "[nats://127.0.0.1:6223, nats://127.0.0.1:6224]",
        "NATS_STORE_DIR": str(tmp_path / "store"),
    }
    checked = subprocess.run(
        [find_binary(), "-t", "-c", tmp_path / "cluster.conf"], env=environ, capture_output=True, timeout=60
    )
    assert checked.returncode == 0, checked.stderr


def test_publisher_without_classes_is_refused(tmp_path: Path) -> None:
    made = make_users(tmp_path, "--publisher", "acme")
    assert made.returncode != 0
    assert b"name the classes" in made.stderr
    assert not (tmp_path / "users.conf").exists()
