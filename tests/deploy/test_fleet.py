"""What compose.yaml starts, without containers, behind a real nginx: streams come as they are made, and outlive what
dies. The short form of the chaos tests on the fleet that operators run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from harness.checkout import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from fleet import KEY, LocalFleet, Unavailable

pytestmark = [pytest.mark.integration, pytest.mark.cluster, pytest.mark.timeout(600)]

SETTINGS = (
    "registry.path=/dev/null",
    "model.id=stub",
    "model.backend=stub",
    "runtime.scheduler.max_batch_size=8",
    "runtime.stub.step_s=0.03",
    "queue.lease_s=2",
    "streams.resume_grace_s=20",
    "tape.ack_timeout_s=5",
)
HEADERS = {"authorization": f"Bearer {KEY}"}
NUM_TOKENS = 60


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    try:
        running = LocalFleet(tmp_path_factory.mktemp("fleet"), SETTINGS)
    except Unavailable as missing:
        pytest.skip(str(missing))
    with running:
        yield running


class Reading:
    """One streamed completion, read to its end through the proxy; a connection that broke is resumed."""

    def __init__(self, fleet: LocalFleet, prompt: str) -> None:
        self.fleet = fleet
        self.prompt = prompt
        self.id = ""
        self.last = ""
        self.texts: list[str] = []
        self.times: list[float] = []
        self.done = False
        self.num_resumed = 0

    def run(self) -> Reading:
        deadline_s = time.monotonic() + 60
        while not self.done and time.monotonic() < deadline_s:
            try:
                self._read()
            except httpx.HTTPError:
                self.num_resumed += 1
                time.sleep(0.2)
        return self

    def _read(self) -> None:
        timeout = httpx.Timeout(30, connect=5)
        if self.id:
            headers = HEADERS | ({"last-event-id": self.last} if self.last else {})
            request: dict[str, Any] = {
                "method": "GET",
                "url": f"{self.fleet.url}/v1/streams/{self.id}",
                "headers": headers,
            }
        else:
            body = {
                "model": "stub",
                "prompt": self.prompt,
                "max_tokens": NUM_TOKENS,
                "stream": True,
                "ignore_eos": True,
            }
            headers = HEADERS | {"idempotency-key": self.prompt}
            request = {"method": "POST", "url": f"{self.fleet.url}/v1/completions", "json": body, "headers": headers}
        with httpx.stream(**request, timeout=timeout) as answer:
            if answer.status_code >= 500:
                raise httpx.HTTPError(f"status {answer.status_code}")
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                self._take(line)

    def _take(self, line: str) -> None:
        if line.startswith("id: "):
            self.last = line[4:]
        elif line == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            self.id = chunk["id"].removeprefix("cmpl-")
            for choice in chunk["choices"]:
                if choice["text"]:
                    self.texts.append(choice["text"])
                    self.times.append(time.monotonic())


def answers(fleet: LocalFleet, number: int, name: str, during: Callable[[], None]) -> list[Reading]:
    """Run that many streams, do something in the middle of them, and return how they ended."""
    with ThreadPoolExecutor(number) as pool:
        readings = [Reading(fleet, f"{name} {each}") for each in range(number)]
        futures = [pool.submit(reading.run) for reading in readings]
        deadline_s = time.monotonic() + 30
        while any(len(reading.texts) < 5 for reading in readings) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        during()
        return [future.result() for future in futures]


def assert_whole(readings: list[Reading]) -> None:
    """Every stream ended, with every token once."""
    for reading in readings:
        assert reading.done, (reading.id, len(reading.texts))
    lengths = {len("".join(reading.texts).split()) for reading in readings}
    # Each word of the stub is a token, but its first, which is longer.
    assert lengths == {NUM_TOKENS}, lengths


def test_tokens_come_through_the_proxy_one_by_one(fleet: LocalFleet) -> None:
    (reading,) = answers(fleet, 1, "alone", lambda: None)
    assert_whole([reading])
    gaps = [after - before for before, after in zip(reading.times, reading.times[1:], strict=False)]
    # Sixty tokens at 30 ms: none of them waited for the others.
    assert reading.times[-1] - reading.times[0] > 1.0
    assert sum(gap > 0.01 for gap in gaps) > NUM_TOKENS // 2


def test_the_proxy_shows_no_metrics(fleet: LocalFleet) -> None:
    assert httpx.get(f"{fleet.url}/metrics").status_code == 404
    assert httpx.get(f"http://127.0.0.1:{fleet.api_ports[0]}/metrics").status_code == 200
    # The operator's page asks for its numbers with a key.
    assert httpx.get(f"{fleet.url}/v1/admin/metrics").status_code == 401
    assert "inferflux_workers" in httpx.get(f"{fleet.url}/v1/admin/metrics", headers=HEADERS).text
    assert httpx.get(f"{fleet.url}/ui").status_code == 200


def test_every_stream_outlives_a_worker(fleet: LocalFleet) -> None:
    assert_whole(answers(fleet, 8, "worker", lambda: fleet.kill("worker-1")))
    fleet.start_worker(0)


def test_every_stream_outlives_a_replica(fleet: LocalFleet) -> None:
    readings = answers(fleet, 8, "replica", lambda: fleet.kill("api-1"))
    assert_whole(readings)
    assert any(reading.num_resumed for reading in readings)
    fleet.start_api(0)
    fleet.until_ready(f"http://127.0.0.1:{fleet.api_ports[0]}/readyz")


def test_every_stream_outlives_a_nats_node(fleet: LocalFleet) -> None:
    assert_whole(answers(fleet, 8, "node", lambda: fleet.kill("nats-2")))
    fleet.start_node(1)
    assert_whole(answers(fleet, 2, "after", lambda: None))
