"""What the server's log says about its disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferflux.broker import disk_watch
from inferflux.broker.disk_watch import DiskWatch

FULL = b"[1] 2026/11/22 [ERR] Filestore [PROMPTS] Critical write error: write 2.blk: no space left on device\n"


def test_only_what_the_running_server_says_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_watch, "ROOM_BYTES", 0)
    log = tmp_path / "nats-server.log"
    watch = DiskWatch(log)
    watch.begin()
    assert not watch.can_be_cured()
    log.write_bytes(FULL)
    assert watch.can_be_cured()
    assert watch.can_be_cured()
    watch.begin()
    assert not watch.can_be_cured()
    with log.open("ab") as more:
        more.write(b"[1] [INF] all is well\n" + FULL)
    assert watch.can_be_cured()


def test_a_rotated_log_is_read_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_watch, "ROOM_BYTES", 0)
    log = tmp_path / "nats-server.log"
    log.write_bytes(b"[1] [INF] a long day\n" * 100)
    watch = DiskWatch(log)
    watch.begin()
    log.write_bytes(FULL)
    assert watch.can_be_cured()


def test_without_room_a_restart_cures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_watch, "ROOM_BYTES", 1 << 62)
    watch = DiskWatch(tmp_path / "nats-server.log")
    watch.begin()
    (tmp_path / "nats-server.log").write_bytes(FULL)
    assert not watch.can_be_cured()
    monkeypatch.setattr(disk_watch, "ROOM_BYTES", 0)
    assert watch.can_be_cured()
