from __future__ import annotations

import socket
from pathlib import Path

import pytest
from harness.http import Answer

from inferflux.cli.errors import CommandFailed
from inferflux.cli.launch import Launch, check_port, free_port, is_loopback
from inferflux.cli.panel import commands, place_text, print_panel
from inferflux.cli.readiness import wait_ready
from inferflux.config.load import load
from inferflux.config.settings import Settings


def launch(settings: Settings | None = None, **values: object) -> Launch:
    given = {"config": Path("c.yaml"), "flags": {"model.path": "m.gguf"}, "log_format": "text", **values}
    return Launch(settings=settings or Settings(), **given)  # type: ignore[arg-type]


def test_replicas_listen_on_ports_in_a_row_and_drain_before_workers():
    children = launch(num_apis=2, num_workers=2, port=9000).children()
    assert [(child.name, child.rank) for child in children] == [
        ("api-1", 0),
        ("api-2", 0),
        ("worker-1", 1),
        ("worker-2", 1),
    ]
    first, second = (child.argv for child in children[:2])
    assert first[1:5] == ("-m", "inferflux.api", "--config", "c.yaml")
    assert "server.port=9000" in first
    assert "server.port=9001" in second
    assert all("model.path=m.gguf" in child.argv and "logging.format=text" in child.argv for child in children)


def test_an_only_child_needs_no_number():
    assert [child.name for child in launch().children()] == ["api", "worker"]


@pytest.mark.parametrize("backend", ["llamacpp", "torch"])
def test_several_workers_divide_the_cores(monkeypatch, backend):
    monkeypatch.setattr("inferflux.cli.launch.num_physical_cores", lambda: 8)
    setting = f"runtime.{backend}.threads="

    def threads(**values):
        children = launch(**values).children()
        return [part for child in children for part in child.argv if part.startswith(setting)]

    assert threads(num_workers=1) == []
    assert threads(num_workers=3) == [f"{setting}2"] * 3
    assert threads(num_workers=9) == [f"{setting}1"] * 9
    chosen = load(None, {}, {f"runtime.{backend}.threads": 5}).settings
    assert threads(settings=chosen, num_workers=3) == []


def test_children_get_longer_to_drain_than_they_give_themselves():
    settings = load(None, {}, {"server.drain_timeout_s": 7, "worker.drain_timeout_s": 9}).settings
    assert [child.grace_s > own for child, own in zip(launch(settings).children(), (7, 9), strict=True)] == [True, True]


def test_colour_is_passed_on_only_where_there_is_some():
    assert all("FORCE_COLOR" not in child.environ for child in launch().children())
    assert all(child.environ["FORCE_COLOR"] for child in launch(coloured=True).children())


@pytest.mark.parametrize(
    ("flags", "url"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"server.host": "0.0.0.0"}, "http://127.0.0.1:8080"),
        ({"server.host": "::"}, "http://[::1]:8080"),
        ({"server.host": "gpu.lan", "server.tls_cert": "c", "server.tls_key": "k"}, "https://gpu.lan:8080"),
    ],
)
def test_addresses_are_ones_to_connect_to(flags, url):
    assert launch(load(None, {}, flags).settings).urls() == [url]


def test_a_port_in_use_is_named_with_the_flag_that_helps():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(CommandFailed, match=rf"port {port} is taken.*--port"):
            check_port("127.0.0.1", port, "--port")
    check_port("127.0.0.1", free_port("127.0.0.1"), "--port")
    with pytest.raises(CommandFailed, match="cannot listen on"):
        check_port("203.0.113.1", 0, "--port")


def test_loopback_is_this_machine_only():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.2", "example.org")))


STUB = {"id": "smollm2", "stub": True, "stub_reason": "the model file is missing", "default": True, "ready": True}
REAL = {"id": "org/big", "stub": False, "default": False, "ready": True}


def test_the_panel_says_where_everything_is_and_calls_a_stub_one():
    settings = load(None, {}, {"tenants": [{"id": "acme", "publish": True}], "broker.store_dir": "/s"}).settings
    text = place_text(launch(settings), [STUB, REAL], "nats://127.0.0.1:4222").plain
    assert "http://127.0.0.1:8080" in text
    assert "smollm2  STUB, answers are made up: the model file is missing" in text
    assert "STUB" not in text.partition("org/big")[2]
    assert "nats://127.0.0.1:4222" in text
    assert "the login t-acme in /s/credentials.json" in text


def test_commands_can_be_pasted_and_show_no_key_but_the_known_one():
    secret = load(None, {}, {"auth.api_keys": [{"key": "sesame"}]}).settings
    known = load(None, {}, {"auth.api_keys": [{"key": "dev-key-123"}]}).settings
    for settings, key in ((secret, "YOUR_KEY"), (known, "dev-key-123")):
        curl, inferctl, sdk = commands(launch(settings), "smollm2")
        assert all(key in command and "sesame" not in command for command in (curl, inferctl, sdk))
        assert "--model smollm2" in inferctl
        assert "INFERCTL_URL" not in inferctl
    assert "INFERCTL_URL=http://127.0.0.1:9000" in commands(launch(known, port=9000), "m")[1]


def test_printed_commands_are_never_broken_into_lines(capsys):
    print_panel(launch(), [REAL], None)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3:] == commands(launch(), "org/big")


async def test_ready_means_that_replicas_accept_and_a_model_is_loaded(http_server):
    answers = [
        Answer(503, {"checks": {"broker": False}}),
        Answer(body={}),
        Answer(body={"data": [REAL | {"ready": False}]}),
        Answer(body={}),
        Answer(body={"data": [REAL]}),
    ]
    server = http_server(lambda asked: answers.pop(0))
    settings = load(None, {}, {"auth.api_keys": [{"key": "limited", "models": ["m"]}, {"key": "all"}]}).settings
    assert await wait_ready(launch(settings, port=int(server.url.rpartition(":")[2]))) == [REAL]
    assert answers == []
    assert server.asked[-1].headers["authorization"] == "Bearer all"


def test_workers_hear_how_many_ranks_they_are():
    (worker,) = launch(num_apis=0, num_workers=1, world_size=2).children()
    assert worker.environ["INFERFLUX_DIST_WORLD_SIZE"] == "2"
    (alone,) = launch(num_apis=0, num_workers=1).children()
    assert "INFERFLUX_DIST_WORLD_SIZE" not in alone.environ
