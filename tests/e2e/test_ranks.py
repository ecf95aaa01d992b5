"""A worker of two ranks over gloo: one of them is killed under load, and no request notices."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import psutil
import pytest
from harness.server import KEY, Server, running_server
from harness.streaming import Streaming
from harness.torch_model import random_model

pytestmark = pytest.mark.integration

PROMPTS = [f"{number} boats lay quiet in the harbour" for number in range(6)]
BODY = {"model": "small", "max_tokens": 180, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ranks")
    model = folder / "small"
    model.mkdir()
    random_model("qwen2", model)
    settings = {
        "model": {"path": str(model), "id": "small", "backend": "torch"},
        "runtime": {"scheduler": {"max_batch_size": 8}, "torch": {"dtype": "float32", "threads": 1}},
    }

    def with_two_ranks(command: list[str]) -> list[str]:
        return ["env", "INFERFLUX_DIST_WORLD_SIZE=2", *command]

    with running_server(folder, settings=settings, within=with_two_ranks) as server:
        yield server


def ask(server: Server, prompt: str) -> str:
    answer = httpx.post(
        server.url + "/v1/completions",
        json={**BODY, "prompt": prompt, "temperature": 0},
        headers={"authorization": f"Bearer {KEY}"},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def second_rank(server: Server) -> psutil.Process:
    """The follower of the worker that serves now."""
    found: list[psutil.Process] = []

    def one() -> bool:
        with suppress(psutil.NoSuchProcess):
            found[:] = [child for child in server.children() if "inferflux.workers.follow" in child.cmdline()]
            return len(found) == 1
        return False

    server.wait_until("there is one follower", one)
    return found[0]


def test_a_killed_rank_costs_no_request_and_no_token(server: Server) -> None:
    before = [ask(server, prompt) for prompt in PROMPTS]
    victim = second_rank(server)
    with ExitStack() as running:
        streams = [running.enter_context(Streaming(server, **BODY, prompt=prompt)) for prompt in PROMPTS]
        for stream in streams:
            stream.read(3)
        os.kill(victim.pid, signal.SIGKILL)
        for stream in streams:
            stream.read()
    assert [stream.text for stream in streams] == before
    server.wait_ready(1)
    assert second_rank(server).pid != victim.pid
    assert "a rank died" in server.log_text()


def test_ranks_end_with_their_worker(server: Server) -> None:
    follower = second_rank(server)
    (pid,) = server.worker_pids()
    os.kill(pid, signal.SIGKILL)
    follower.wait(60)
    server.wait_until("another worker is there", lambda: server.worker_pids() not in ([], [pid]))
