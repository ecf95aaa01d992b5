"""What a client sees when something dies under its request."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest
from harness.server import KEY, Server, running_server
from harness.streaming import PROMPT, Streaming, worker_of

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
        victim = worker_of(server, stream)
        os.kill(victim, signal.SIGKILL)
        stream.read()
    assert stream.text == whole.text
    assert len(stream.events) >= 60
    server.wait_until("its death is told", lambda: "killed" in server.log_text().lower())
    server.wait_ready(2)
    assert victim not in server.worker_pids()


def test_a_stopped_worker_is_continued_elsewhere_and_may_not_end_the_request(server: Server) -> None:
    with Streaming(server) as whole:
        whole.read()
    with Streaming(server) as stream:
        stream.read(5)
        zombie = worker_of(server, stream)
        os.kill(zombie, signal.SIGSTOP)
        try:
            stream.read(10)
        finally:
            os.kill(zombie, signal.SIGCONT)
        stream.read()
    assert stream.text == whole.text
    server.wait_ready(2)


def test_a_client_that_goes_away_frees_its_pages(server: Server) -> None:
    """Its answer would take longer than anything is waited for."""
    with Streaming(server, max_tokens=7000, ignore_eos=True) as stream:
        stream.read(2)
        worker_of(server, stream)
    server.wait_until("the worker has let go", lambda: stream.id not in server.holders())
    let_go_s = time.time()

    def idle() -> bool:
        beats = server.workers()
        models = [model for beat in beats for model in beat["models"]]
        held = any(model["num_running"] or model["num_pages_used"] for model in models)
        return all(beat["at"] > let_go_s for beat in beats) and not held

    server.wait_until("no page is held", idle)
    server.wait_until("nothing is queued", lambda: not server.get("/v1/admin/queue").json()["data"])


def test_a_killed_nats_server_comes_back_and_requests_are_answered(server: Server) -> None:
    os.kill(nats_pid(server), signal.SIGKILL)

    def answers() -> bool:
        body = PROMPT | {"stream": False, "max_tokens": 3}
        headers = {"authorization": f"Bearer {KEY}"}
        response = httpx.post(server.url + "/v1/completions", json=body, headers=headers, timeout=60)
        assert response.status_code in (200, 503), response.text
        return response.status_code == 200

    server.wait_until("a request is answered after the crash", answers)


def nats_pid(server: Server) -> int:
    """The embedded nats-server, found among the children of `inferctl serve`."""
    for child in server.children():
        if "nats-server" in child.name():
            return int(child.pid)
    raise AssertionError("no nats-server runs")
