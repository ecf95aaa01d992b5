"""What a large file costs in memory: upload, validation, lines that run, download."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from chaos.conftest import Scale
from chaos.conftest import scale as scale
from harness.batches import ENDPOINT
from harness.server import KEY, Server, running_server

pytestmark = pytest.mark.integration

HEADERS = {"authorization": f"Bearer {KEY}"}
NUM_LINES = 45_000
MAX_GROWTH = 50 * 1024 * 1024


class Memory:
    """The most that each process ever held over what it held at first."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self.growth: dict[str, int] = {}
        self._first = {process: process.memory_info().rss for process in processes}

    def look(self) -> None:
        for process, first in self._first.items():
            name = f"{process.name()} {process.pid}"
            self.growth[name] = max(self.growth.get(name, 0), process.memory_info().rss - first)


@contextmanager
def watched(server: Server) -> Iterator[Memory]:
    memory, done = Memory(server.children()), threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            memory.look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()


def write(path: Path, num_bytes: int) -> Path:
    """A file of requests of so many bytes."""
    num_lines = min(NUM_LINES, num_bytes // 4096)
    filler = "word " * (num_bytes // num_lines // 5 - 40)
    with path.open("w") as file:
        for number in range(num_lines):
            body = {"messages": [{"role": "user", "content": f"{number} {filler}"}], "max_tokens": 1}
            file.write(json.dumps({"custom_id": str(number), "method": "POST", "url": ENDPOINT, "body": body}) + "\n")
    return path


@pytest.mark.timeout(600)
def test_memory_stays_flat(tmp_path: Path, scale: Scale) -> None:
    """Fails when a file, or its lines, are held in memory anywhere."""
    path = write(tmp_path / "in.jsonl", (195 if scale.long else 80) * 1024 * 1024)
    size = path.stat().st_size
    with (
        running_server(tmp_path / "serve") as server,
        httpx.Client(base_url=server.url, headers=HEADERS, timeout=300) as client,
    ):
        # What any first file costs, such as compiled patterns and grown buffers, is no growth.
        client.post("/v1/files", files={"file": b"{}"}, data={"purpose": "batch"}).raise_for_status()
        with watched(server) as memory:
            with path.open("rb") as file:
                stored = client.post("/v1/files", files={"file": file}, data={"purpose": "batch"})
            assert stored.json()["bytes"] == size
            num_bytes = 0
            with client.stream("GET", f"/v1/files/{stored.json()['id']}/content") as answer:
                for chunk in answer.iter_bytes():
                    num_bytes += len(chunk)
            assert num_bytes == size
            body = {"input_file_id": stored.json()["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
            batch = client.post("/v1/batches", json=body).json()
            deadline_s = time.monotonic() + 200
            while client.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"] < 300:
                assert time.monotonic() < deadline_s, client.get(f"/v1/batches/{batch['id']}").text
                time.sleep(0.2)
            client.post(f"/v1/batches/{batch['id']}/cancel").raise_for_status()
            while client.get(f"/v1/batches/{batch['id']}").json()["status"] != "cancelled":
                time.sleep(0.1)
    for name, growth in memory.growth.items():
        assert growth < MAX_GROWTH, (name, memory.growth)
