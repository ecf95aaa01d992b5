"""A batch whose runner, worker and NATS server are killed in the middle: every line once."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from chaos.conftest import Scale
from harness.batches import ENDPOINT, jsonl, line
from harness.server import KEY, Server, running_server

pytestmark = pytest.mark.integration

NUM_TOKENS = 12
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two replicas and two workers."""
    settings = {
        "runtime": {"scheduler": {"max_batch_size": 16}, "stub": {"step_s": 0.02}},
        "queue": {"lease_s": 3.0},
        "batches": {"lease_s": 3.0, "max_in_flight": 64},
    }
    folder = tmp_path_factory.mktemp("batches")
    with running_server(folder, num_replicas=2, num_workers=2, settings=settings) as server:
        yield server


@pytest.mark.timeout(900)
def test_kill_9_of_runner_worker_and_nats(server: Server, scale: Scale) -> None:
    """Fails when a part of the journal may be written twice, when a lease is never taken over, and when a lost tape is
    an error of the line."""
    num_lines = 10_000 if scale.long else 800
    content = jsonl(line(number, max_tokens=NUM_TOKENS, ignore_eos=True) for number in range(num_lines))
    ident = _submit(server, content)

    _until_done(server, ident, num_lines // 5)
    runner = _runner(server)
    os.kill(runner, signal.SIGKILL)
    _until_done(server, ident, 2 * num_lines // 5)
    os.kill(_ask(server, "/v1/admin/workers").json()["data"][0]["pid"], signal.SIGKILL)
    _until_done(server, ident, 3 * num_lines // 5)
    os.kill(_nats(server), signal.SIGKILL)
    _until_done(server, ident, num_lines)

    batch = _until_status(server, ident, "completed")
    assert batch["request_counts"] == {"total": num_lines, "completed": num_lines, "failed": 0}
    assert batch["error_file_id"] is None
    answers = [json.loads(each) for each in _content(server, batch["output_file_id"]).splitlines()]
    assert sorted(each["custom_id"] for each in answers) == sorted(f"line-{number}" for number in range(num_lines))
    assert all(each["response"]["body"]["usage"]["completion_tokens"] == NUM_TOKENS for each in answers)
    server.wait_ready(2)
    taken = [float(count) for url in server.urls for count in _metric(url, "inferflux_batch_takeovers_total")]
    assert sum(taken) >= 1


def _submit(server: Server, content: bytes) -> str:
    files = {"file": ("in.jsonl", content)}
    file = httpx.post(f"{server.url}/v1/files", files=files, data={"purpose": "batch"}, headers=HEADERS, timeout=60)
    assert file.status_code == 200, file.text
    body = {"input_file_id": file.json()["id"], "endpoint": ENDPOINT, "completion_window": "1h"}
    batch = httpx.post(f"{server.url}/v1/batches", json=body, headers=HEADERS, timeout=60)
    assert batch.status_code == 200, batch.text
    return str(batch.json()["id"])


def _ask(server: Server, path: str) -> httpx.Response:
    """The answer of whichever replica gives one."""
    deadline_s = time.monotonic() + 180
    while True:
        for url in server.urls:
            try:
                answer = httpx.get(url + path, headers=HEADERS, timeout=20)
            except httpx.HTTPError:
                continue
            if answer.status_code == 200:
                return answer
        assert time.monotonic() < deadline_s, server.log_text()[-4000:]
        time.sleep(0.1)


def _get(server: Server, ident: str) -> dict[str, Any]:
    return dict(_ask(server, f"/v1/batches/{ident}").json())


def _until_done(server: Server, ident: str, num_lines: int) -> None:
    def done() -> bool:
        batch = _get(server, ident)
        assert batch["status"] not in ("failed", "expired", "cancelled"), batch
        return int(batch["request_counts"]["completed"]) >= num_lines

    server.wait_until(f"{num_lines} lines", done, timeout_s=600)


def _until_status(server: Server, ident: str, status: str) -> dict[str, Any]:
    server.wait_until(status, lambda: _get(server, ident)["status"] == status)
    return _get(server, ident)


def _content(server: Server, file: str) -> bytes:
    return _ask(server, f"/v1/files/{file}/content").content


def _metric(url: str, name: str) -> list[str]:
    text = httpx.get(f"{url}/metrics", timeout=60).text
    return re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)


def _runner(server: Server) -> int:
    """The process of the replica that works on the batch."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [
            int(httpx.get(f"{url}/v1/admin/status", headers=HEADERS, timeout=60).json()["pid"])
            for url in server.urls
            if _metric(url, "inferflux_batches_running") == ["1.0"]
        ]
        return bool(found)

    server.wait_until("a replica runs the batch", look)
    return found[0]


def _nats(server: Server) -> int:
    return next(int(child.pid) for child in server.children() if _is_nats(child))


def _is_nats(process: psutil.Process) -> bool:
    return "nats-server" in process.name()
