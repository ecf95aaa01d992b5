"""`inferctl audit verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from inferflux.cli import audit as audit_command
from inferflux.cli.main import app
from inferflux.config.chain import Chain, Head

runner = CliRunner()


class Server:
    """Stands in for the client of a server with these anchors."""

    def __init__(self, *heads: Head) -> None:
        self.heads = heads

    def __call__(self, url: str, api_key: str | None) -> Server:
        return self

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing to close."""

    def get(self, path: str) -> dict[str, Any]:
        assert path == "/v1/admin/audit"
        return {"data": [{"chain": each.chain, "seq": each.seq, "hash": each.hash, "at": 1.0} for each in self.heads]}


def write(path: Path, num_lines: int = 4) -> Head:
    chain = Chain("api-1")
    path.write_bytes(b"".join(chain.link({"action": "x.y", "number": number}) for number in range(num_lines)))
    return chain.head


def test_a_sound_log_is_told_so(tmp_path: Path) -> None:
    write(tmp_path / "audit.log")
    result = runner.invoke(app, ["audit", "verify", str(tmp_path / "audit.log")])
    assert result.exit_code == 0
    assert "4 lines of 1 processes are as they were written" in result.stdout
    assert "a tail that was cut off is not found" in result.stdout


def test_a_removed_line_is_shown_and_fails(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path)
    raw = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(raw[:1] + raw[2:]))
    result = runner.invoke(app, ["audit", "verify", str(path), "--json"])
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)["findings"]
    assert (finding["line"], finding["file"]) == (2, str(path))
    assert runner.invoke(app, ["audit", "verify", str(path)]).exit_code == 1


def test_with_a_server_a_cut_tail_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.log"
    head = write(path)
    monkeypatch.setattr(audit_command, "connect", Server(head))
    asked = ["audit", "verify", str(path), "--url", "http://fleet"]
    assert runner.invoke(app, asked).exit_code == 0
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    result = runner.invoke(app, asked)
    assert result.exit_code == 1
    assert "its tail was cut" in result.stdout


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = runner.invoke(app, ["audit", "verify", str(tmp_path / "gone.log")])
    assert result.exit_code == 1
    assert "gone.log cannot be read" in str(result.exception)
