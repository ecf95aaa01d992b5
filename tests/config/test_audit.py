from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inferflux.config import audit as audit_module
from inferflux.config.audit import SYSTEM, Actor, Audit, Writer
from inferflux.config.chain import Chain, Head, Verifier
from inferflux.config.errors import ConfigError
from inferflux.config.settings import LoggingSettings

ALICE = Actor(id="ab12", tenant="acme", source="10.0.0.1")


def lines(*files: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for file in files for line in file.read_bytes().splitlines()]


def findings(*files: Path, anchors: list[Head] | None = None, partial: bool = False) -> list[str]:
    verifier = Verifier(partial=partial)
    found = []
    for file in files:
        with file.open("rb") as raw:
            found += [
                f"{file.name}:{each.line} {each.problem}" for each in verifier.read(file.name, raw, anchors or [])
            ]
    return found + [each.problem for each in verifier.close(anchors or [])]


class Log:
    """An audit log whose writes can be waited for."""

    def __init__(self, path: Path, process: str = "api", **settings: Any) -> None:
        self._folder = path.parent
        self._text = b""
        self._changed = threading.Condition()
        self.audit = Audit(LoggingSettings(audit_log=str(path), **settings), process)
        self.audit.on_written = self._written
        # What was written before we listened.
        self.settle()

    def _written(self, _: int) -> None:
        with self._changed:
            self._text = b"".join(file.read_bytes() for file in self._folder.glob("audit.log*"))
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout=60)

    def settle(self) -> None:
        """Return once a line that is recorded now, and with it all before it, is written."""
        mark = f"mark.{os.urandom(4).hex()}"
        self.audit.record(mark, SYSTEM, "allowed")
        self.wait(lambda: mark.encode() in self._text)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "audit.log")


def test_a_line_says_who_what_when_and_from_where(tmp_path: Path, log: Log) -> None:
    log.audit.record("admin.change", ALICE, "allowed", request="r1", path="/v1/admin/fairness", status=200)
    log.audit.close()
    (line,) = [each for each in lines(tmp_path / "audit.log") if each["action"] == "admin.change"]
    assert (line["actor"], line["tenant"], line["source"]) == ("ab12", "acme", "10.0.0.1")
    assert (line["verdict"], line["request"]) == ("allowed", "r1")
    assert line["detail"] == {"path": "/v1/admin/fairness", "status": 200}
    assert line["ts"].endswith("Z")


def test_nothing_in_a_field_can_begin_another_line(tmp_path: Path, log: Log) -> None:
    log.audit.record("request.refuse", Actor(id='a\n{"action":"forged"}'), "denied", path="/\r\n\x1b[2J\u2028")
    log.audit.close()
    assert not [each for each in lines(tmp_path / "audit.log") if each["action"] == "forged"]
    assert findings(tmp_path / "audit.log") == []


def test_without_a_file_nothing_happens() -> None:
    audit = Audit()
    audit.record("x.y", ALICE, "allowed")
    audit.reopen()
    audit.close()
    assert not audit.active
    assert audit.head is None


def test_a_folder_that_cannot_be_written_keeps_the_process_from_starting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"logging\.audit_log"):
        Audit(LoggingSettings(audit_log=str(tmp_path / "file" / "audit.log")))


def test_processes_share_a_file_each_with_a_chain_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    logs = [Log(path, name) for name in ("api-1", "api-2", "worker")]
    for number in range(300):
        logs[number % 3].audit.record("x.y", ALICE, "allowed", number=number)
    heads = []
    for each in logs:
        each.audit.close()
        assert each.audit.head is not None
        heads.append(each.audit.head)
    assert findings(path, anchors=heads) == []
    assert len({line["chain"] for line in lines(path)}) == 3
    assert sorted(line["detail"]["number"] for line in lines(path) if line["action"] == "x.y") == list(range(300))


def test_a_renamed_file_is_followed_by_a_new_one(tmp_path: Path, log: Log) -> None:
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    log.audit.record("x.before", ALICE, "allowed")
    log.settle()
    path.rename(old)
    log.audit.record("x.after", ALICE, "allowed")
    log.audit.close()
    assert [line["action"] for line in lines(old) if line["action"].startswith("x.")] == ["x.before"]
    assert [line["action"] for line in lines(path) if line["action"].startswith("x.")] == ["x.after"]
    assert findings(old, path) == []
    assert len(findings(path)) == 1
    assert findings(path, partial=True) == []


def test_a_hangup_makes_the_new_file_at_once(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "audit.log"
    log.settle()
    path.rename(tmp_path / "audit.log.1")
    log.audit.reopen()
    log.settle()
    assert path.exists()
    log.audit.close()


class Tampering:
    """What somebody who can write the file did to it."""

    @staticmethod
    def change(raw: list[bytes]) -> list[bytes]:
        return [*raw[:4], raw[4].replace(b"allowed", b"denied"), *raw[5:]]

    @staticmethod
    def remove(raw: list[bytes]) -> list[bytes]:
        return raw[:4] + raw[5:]

    @staticmethod
    def remove_first(raw: list[bytes]) -> list[bytes]:
        return raw[1:]

    @staticmethod
    def reorder(raw: list[bytes]) -> list[bytes]:
        return [*raw[:4], raw[5], raw[4], *raw[6:]]

    @staticmethod
    def double(raw: list[bytes]) -> list[bytes]:
        return [*raw[:5], *raw[4:]]

    @staticmethod
    def strip_hash(raw: list[bytes]) -> list[bytes]:
        return [*raw[:4], raw[4].partition(b',"hash"')[0] + b"}\n", *raw[5:]]

    @staticmethod
    def garble(raw: list[bytes]) -> list[bytes]:
        return [*raw[:4], raw[4][:20] + b"\n", *raw[5:]]


@pytest.mark.parametrize("how", [name for name in vars(Tampering) if not name.startswith("_")])
def test_tampering_is_found_without_a_server(tmp_path: Path, log: Log, how: str) -> None:
    path = tmp_path / "audit.log"
    for number in range(8):
        log.audit.record("x.y", ALICE, "allowed", number=number)
    log.audit.close()
    assert findings(path) == []
    raw = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(getattr(Tampering, how)(raw)))
    found = findings(path)
    assert found
    line = int(found[0].partition(":")[2].partition(" ")[0])
    assert line == (1 if how == "remove_first" else 6 if how == "double" else 5)


def test_a_cut_tail_and_a_new_history_are_found_by_the_anchor(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "audit.log"
    for number in range(8):
        log.audit.record("x.y", ALICE, "allowed", number=number)
    log.audit.close()
    head = log.audit.head
    assert head is not None
    raw = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(raw[:-2]))
    assert findings(path) == []
    assert "its tail was cut" in findings(path, anchors=[head])[0]
    chain = Chain(head.chain)
    path.write_bytes(b"".join(chain.link({"action": "harmless"}) for _ in raw))
    assert findings(path) == []
    assert "written anew" in findings(path, anchors=[head])[0]
    path.write_bytes(b"")
    assert "is not here" in findings(path, anchors=[head])[0]
    assert findings(path, anchors=[head], partial=True) == []


def test_what_a_dead_process_wrote_in_part_does_not_spoil_the_next_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(b'{"ts":"2026-01-01T00:00:0')
    log = Log(path)
    log.audit.close()
    assert findings(path) == ["audit.log:1 is no line of an audit log"]


def test_a_full_disk_makes_lines_wait_and_then_all_are_written(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "RETRY_S", 0.01)
    full, tries = threading.Event(), threading.Semaphore(0)
    write = os.write

    def written(file: int, data: bytes) -> int:
        if full.is_set():
            tries.release()
            write(file, data[:7])
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(audit_module.os, "write", written)
    full.set()
    log.audit.record("x.waits", ALICE, "allowed")
    assert tries.acquire(timeout=60)
    for number in range(5):
        log.audit.record("x.waits", ALICE, "allowed", number=number)
    assert tries.acquire(timeout=60), "it does not try again"
    assert log.audit.broken
    assert not log.audit.refuses
    full.clear()
    log.settle()
    assert not log.audit.broken
    log.audit.close()
    assert [line["action"] for line in lines(tmp_path / "audit.log")].count("x.waits") == 6
    assert findings(tmp_path / "audit.log") == []


def test_too_many_waiting_lines_are_lost_counted_and_told(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "RETRY_S", 0.01)
    monkeypatch.setattr(audit_module, "MAX_WAITING", 3)
    full, failed, lost = threading.Event(), threading.Event(), list[int]()
    log.audit.on_lost = lost.append
    original = Writer.write

    def write(writer: Writer, data: bytes) -> None:
        if full.is_set():
            failed.set()
            raise OSError(28, "No space left on device")
        original(writer, data)

    monkeypatch.setattr(Writer, "write", write)
    full.set()
    log.audit.record("x.first", ALICE, "allowed")
    assert failed.wait(60)
    for _ in range(5):
        log.audit.record("x.more", ALICE, "allowed")
    assert sum(lost) == 2
    full.clear()
    log.audit.close()
    told = [each["detail"]["num_lines"] for each in lines(tmp_path / "audit.log") if each["action"] == "audit.lost"]
    assert sum(told) == sum(lost)
    assert findings(tmp_path / "audit.log") == []


def test_required_means_refusing_while_it_is_broken(tmp_path: Path) -> None:
    log = Log(tmp_path / "audit.log", audit_required=True)
    assert not log.audit.refuses
    log.audit.broken = True
    assert log.audit.refuses
    log.audit.broken = False
    log.audit.close()
