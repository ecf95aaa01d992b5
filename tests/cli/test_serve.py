"""`inferctl serve` as a whole, on the stub, and what it refuses to start with."""

from __future__ import annotations

import logging
import os
import signal

import httpx
import psutil
import pytest
from harness.server import KEY, running_server

from inferflux.cli.launch import DEV_KEY
from inferflux.cli.serve import warn
from inferflux.config.load import load


@pytest.mark.integration
def test_a_crashed_worker_is_named_and_replaced_and_ctrl_c_leaves_nothing(tmp_path):
    with running_server(tmp_path, num_replicas=2) as server:
        children = server.children()
        (before,) = server.workers()
        os.kill(before["pid"], signal.SIGILL)
        server.wait_until("another worker", lambda: before["pid"] not in {beat["pid"] for beat in server.workers()})
        server.wait_ready(num_workers=1)
        answer = httpx.post(
            f"{server.urls[1]}/v1/completions",
            json={"model": "stub", "prompt": "Hello", "max_tokens": 4},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=60,
        )
        assert answer.status_code == 200
        assert server.stop() == [0]
    log = server.log_text()
    assert "process died" in log
    assert "SIGILL: an instruction that this processor lacks" in log
    assert log.index("InferFlux is ready") >= 0
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert len(gone) >= 4


@pytest.mark.integration
def test_a_killed_serve_takes_its_children_along(tmp_path):
    with running_server(tmp_path) as server:
        children = server.children()
        server.processes[0].kill()
        _, alive = psutil.wait_procs(children, timeout=90)
        assert alive == []


def test_wrong_flags_are_settings_errors(inferctl):
    assert "did you mean server.port?" in inferctl("serve", "--set", "server.prot=1").err
    assert inferctl("serve", "--config", "nowhere.yaml").status == 2


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [("127.0.0.1", DEV_KEY, False), ("0.0.0.0", "mine", False), ("0.0.0.0", DEV_KEY, True), ("::", DEV_KEY, True)],
)
def test_the_development_key_beyond_this_machine_is_warned_of(caplog, host, key, warned):
    with caplog.at_level(logging.WARNING, logger="inferflux"):
        warn(load(None, {}, {"server.host": host, "auth.api_keys": [{"key": key}]}).settings)
    assert ("dev-key-123" in caplog.text) is warned


def test_a_server_without_keys_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, logger="inferflux"):
        warn(load(None, {}).settings)
    assert "auth.api_keys is empty" in caplog.text
