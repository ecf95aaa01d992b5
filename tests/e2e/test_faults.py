"""What a client sees when something dies under its request."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import httpx
import pytest
from harness.server import KEY, Server, running_server
from harness.streaming import PROMPT, Streaming, busy_worker

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two replicas and two workers whose stub takes 30 ms a step, so that there is time to kill one."""
    settings = {"runtime": {"scheduler": {"max_batch_size": 8}, "stub": {"step_s": 0.03}}}
    folder = tmp_path_factory.mktemp("faults")
    with running_server(folder, num_replicas=2, num_workers=2, settings=settings) as server:
        yield server


def test_a_killed_worker_costs_no_token(server: Server) -> None:
    with Streaming(server) as whole:
        whole.read()
    with Streaming(server) as stream:
        stream.read(5)
        victim = busy_worker(server)
        os.kill(victim["pid"], signal.SIGKILL)
        stream.read()
    assert stream.text == whole.text
    assert len(stream.events) >= 60
    assert "killed" in server.log_text().lower()
    server.wait_until("the dead worker is gone", lambda: victim["pid"] not in server.worker_pids())
    server.wait_ready(2)


def test_a_stopped_worker_is_continued_elsewhere_and_may_not_end_the_request(server: Server) -> None:
    with Streaming(server) as whole:
        whole.read()
    with Streaming(server) as stream:
        stream.read(5)
        zombie = busy_worker(server)["pid"]
        os.kill(zombie, signal.SIGSTOP)
        try:
            stream.read(10)
        finally:
            os.kill(zombie, signal.SIGCONT)
        stream.read()
    assert stream.text == whole.text


def test_a_client_that_goes_away_frees_its_pages(server: Server) -> None:
    with Streaming(server, max_tokens=64) as stream:
        stream.read(2)
        busy_worker(server)

    def idle() -> bool:
        models = [model for beat in server.workers() for model in beat["models"]]
        return not any(model.get("num_running") or model.get("num_pages_used") for model in models)

    server.wait_until("no page is held", idle, timeout_s=10)
    queue = server.get("/v1/admin/queue").json()
    assert not queue["data"], queue


def test_a_killed_nats_server_comes_back_and_requests_are_answered(server: Server) -> None:
    os.kill(nats_pid(server), signal.SIGKILL)

    def answers() -> bool:
        body = PROMPT | {"stream": False, "max_tokens": 3}
        headers = {"authorization": f"Bearer {KEY}"}
        response = httpx.post(server.url + "/v1/completions", json=body, headers=headers, timeout=30)
        assert response.status_code in (200, 503), response.text
        return response.status_code == 200

    server.wait_until("a request is answered after the crash", answers, timeout_s=60)


def nats_pid(server: Server) -> int:
    """The embedded nats-server, found among the children of `inferctl serve`."""
    for child in server.children():
        if "nats-server" in child.name():
            return int(child.pid)
    raise AssertionError("no nats-server runs")
