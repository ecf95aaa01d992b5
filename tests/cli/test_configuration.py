from __future__ import annotations

import json

import pytest


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("server:\n  port: 9000\nauth:\n  api_keys:\n    - key: sesame\n")
    return path


def test_a_good_file_is_valid(inferctl, path):
    assert inferctl("config", "--check", str(path)) == (0, f"{path}: valid\n", "")


def test_a_check_looks_at_the_file_alone(inferctl, path, monkeypatch):
    monkeypatch.setenv("INFERFLUX_SERVER_PORT", "nonsense")
    assert inferctl("config", "--check", str(path)).status == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("server:\n  prot: 1\n", ":2: server.prot is no setting; did you mean server.port?"),
        ("tenants:\n  - {id: a}\n  - {id: a}\n", "tenants[1].id"),
        ("auth:\n  api_keys: [{key: k}, {key: k}]\n", "auth.api_keys[1].key"),
    ],
)
def test_a_wrong_file_exits_with_2_and_one_line(inferctl, path, text, says):
    path.write_text(text)
    result = inferctl("config", "--check", str(path))
    assert (result.status, result.out) == (2, "")
    assert says in result.err
    assert result.err.count("\n") == 1


def test_show_gives_values_origins_and_no_secrets(inferctl, path, monkeypatch):
    monkeypatch.setenv("INFERFLUX_QUEUE_LEASE_S", "3")
    arguments = ("config", "--show", "--config", str(path), "--set", "server.host=::1")
    shown = json.loads(inferctl(*arguments, "--json").out)
    assert shown["server.port"] == {"value": 9000, "origin": f"{path}:2"}
    assert shown["queue.lease_s"] == {"value": 3.0, "origin": "env INFERFLUX_QUEUE_LEASE_S"}
    assert shown["server.host"] == {"value": "::1", "origin": "flag"}
    assert shown["broker.url"] == {"value": None, "origin": "default"}
    text = inferctl(*arguments).out
    assert "sesame" not in text + str(shown)
    assert len(text.splitlines()) == len(shown)


def test_one_of_both_must_be_said(inferctl, path):
    assert inferctl("config").status == 2
    assert inferctl("config", "--show", "--check", str(path)).status == 2
