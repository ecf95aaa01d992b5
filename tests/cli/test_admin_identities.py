"""`inferctl admin api-keys` and `tenants` against a real API, and the NATS configuration they print."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats as nats_py
import pytest
from harness.http import Answer, Asked
from harness.ports import free_ports

from inferflux.broker.credentials import Login, load_file
from inferflux.broker.embedded import die_with_parent, find_binary

KEYS = {
    "data": [
        {
            "id": "k43ycarg",
            "tenant": "research",
            "scopes": ["generate"],
            "models": [],
            "origin": "created",
            "name": "note[red]books",
            "created": 1_700_000_000.0,
            "expires": 1_800_000_000.0,
            "expired": False,
        }
    ]
}
TENANT = {
    "id": "a.b c",
    "weight": 2.0,
    "classes": ["default", "batch"],
    "max_queued": None,
    "max_running": 3,
    "cache_group": None,
    "publish": True,
    "file_quota_bytes": 10_000,
    "file_retention_s": None,
    "changed": ["weight"],
    "origin": "created",
    "dry_run": False,
}


class Scripted:
    """Remembers what was asked, and answers by path."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []

    def __call__(self, asked: Asked) -> Answer:
        self.calls.append((asked.method, asked.path, asked.json if asked.body else None))
        dry = "dry_run" in asked.path
        if "tenants" in asked.path:
            return Answer(200, {"data": [TENANT]} if asked.method == "GET" else TENANT | {"dry_run": dry})
        made = KEYS["data"][0] | {"key": None if dry else "ifx-secret", "dry_run": dry}
        return Answer(200, KEYS if asked.method == "GET" else made)


@pytest.fixture
def scripted(http_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Scripted:
    found = Scripted()
    monkeypatch.setenv("INFERCTL_URL", http_server(found).url)
    return found


def test_a_new_key_alone_goes_to_stdout(inferctl: Any, scripted: Scripted) -> None:
    options = ["--create", "--tenant", "research", "--scope", "generate", "--expires", "2h", "--name", "x"]
    done = inferctl("admin", "api-keys", *options)
    assert (done.status, done.out) == (0, "ifx-secret\n")
    body = {"tenant": "research", "scopes": ["generate"], "name": "x", "expires_in_s": 7200.0}
    assert scripted.calls == [("POST", "/v1/admin/api_keys", body)]
    assert inferctl("admin", "api_keys", "--create", "--dry-run").out == ""
    assert scripted.calls[-1][1] == "/v1/admin/api_keys?dry_run=true"


def test_keys_are_listed_and_revoked(inferctl: Any, scripted: Scripted) -> None:
    shown = inferctl("admin", "api-keys", "--list").out
    assert "note[red]books" in shown
    assert "2023-11-14 22:13:20Z" in shown
    assert json.loads(inferctl("admin", "api-keys", "--json").out) == KEYS
    assert inferctl("admin", "api-keys", "--revoke", "a/b").status == 0
    assert scripted.calls[-1][:2] == ("DELETE", "/v1/admin/api_keys/a%2Fb")


def test_tenants_are_shown_changed_and_given_back(inferctl: Any, scripted: Scripted) -> None:
    assert "a.b c" in inferctl("admin", "tenants").out
    options = ["--weight", "default", "--class", "batch", "--max-running", "3", "--publish", "true", "--dry-run"]
    options += ["--file-quota-bytes", "5000", "--file-retention-s", "default"]
    assert "nothing was changed" in inferctl("admin", "tenants", "--set", "x/y", *options).err
    body = {"weight": None, "classes": ["batch"], "max_running": 3, "publish": True}
    body |= {"file_quota_bytes": 5000, "file_retention_s": None}
    assert scripted.calls[-1] == ("PUT", "/v1/admin/tenants/x%2Fy?dry_run=true", body)
    assert inferctl("admin", "tenants", "--delete", "x").status == 0
    assert scripted.calls[-1][0] == "DELETE"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("api-keys --list --create", "one of"),
        ("api-keys --tenant x", "belong to"),
        ("api-keys --create --expires tomorrow", "30d"),
        ("api-keys --create --expires 0d", "30d"),
        ("tenants --weight 2", "--set TENANT"),
        ("tenants --set a --weight x", "--weight"),
        ("tenants --set a --publish maybe", "true or false"),
        ("tenants --set a --file-quota-bytes 1GB", "--file-quota-bytes"),
        ("tenants --list --delete a", "one of"),
        ("tenants --nats-config", "--credentials"),
    ],
)
def test_wrong_usage_says_what_is_right(inferctl: Any, scripted: Scripted, words: str, says: str) -> None:
    done = inferctl("admin", *words.split())
    assert done.status == 2
    assert says in done.err
    assert not [call for call in scripted.calls if call[0] != "GET"]


def test_the_nats_configuration_keeps_logins_and_is_private(inferctl: Any, scripted: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    first = inferctl("admin", "tenants", "--nats-config", "--credentials", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = inferctl("admin", "tenants", "--nats-config", "--credentials", str(path))
    assert first.status == 0
    assert first.out == again.out
    assert str(path) in first.err
    stored = load_file(path)
    assert stored is not None
    assert set(stored.logins) == {"admin", "api", "worker", "t-a.b c"}
    assert stored.stamp_secret not in first.out + first.err


@pytest.fixture
def nats_server(inferctl: Any, scripted: Scripted, tmp_path: Path) -> Iterator[tuple[int, Login]]:
    """A server that runs with what was printed: its port, and the tenant's login."""
    path = tmp_path / "credentials.json"
    printed = inferctl("admin", "tenants", "--nats-config", "--credentials", str(path)).out
    (tmp_path / "users.conf").write_text(printed)
    (port,) = free_ports(1)
    config = tmp_path / "nats.conf"
    config.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{tmp_path}" }}\ninclude ./users.conf\n')
    stored = load_file(path)
    assert stored is not None
    server = subprocess.Popen(die_with_parent([str(find_binary()), "-c", str(config), "-l", str(tmp_path / "log")]))
    yield port, stored.logins["t-a.b c"]
    server.terminate()
    server.wait(60)


@pytest.mark.integration
async def test_a_nats_server_reads_it_and_confines_the_tenant(nats_server: tuple[int, Login]) -> None:
    violations: asyncio.Queue[str] = asyncio.Queue()

    async def on_error(error: Exception) -> None:
        if "permissions violation" in str(error):
            violations.put_nowait(str(error))

    client = await connected(*nats_server, error_cb=on_error)
    for subject in ("inferflux.infer.m.default.acme", "inferflux.cancel.t-acme.x", "inferflux.infer.m.batch.a=2Eb=20c"):
        await client.publish(subject, b"{}")
    await client.publish("last", b"")
    async with asyncio.timeout(30):
        refused = [await violations.get() for _ in range(3)]
    assert [text.rpartition(" ")[2].strip('"') for text in refused] == [
        "inferflux.infer.m.default.acme",
        "inferflux.cancel.t-acme.x",
        "last",
    ]
    await client.close()


async def connected(port: int, login: Login, **options: Any) -> Any:
    deadline_s = time.monotonic() + 60
    while True:
        try:
            return await nats_py.connect(
                f"nats://127.0.0.1:{port}",
                user=login.user,
                password=login.password,
                inbox_prefix=b"_INBOX_t-a=2Eb=20c",
                allow_reconnect=False,
                **options,
            )
        except (OSError, nats_py.errors.Error):
            assert time.monotonic() < deadline_s
