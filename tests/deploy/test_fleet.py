"""What compose.yaml starts, without containers, behind a real nginx: streams come as they are made, and outlive what
dies. The short form of the chaos tests on the fleet that operators run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest
from harness.checkout import ROOT
from harness.ports import free_ports

sys.path.insert(0, str(ROOT / "scripts"))
from fleet import KEY, LocalFleet, Unavailable

pytestmark = [pytest.mark.integration, pytest.mark.cluster, pytest.mark.timeout(600)]

NUM_TOKENS = 60
STEP_S = 0.09
"""An answer lasts until all others have begun, on a busy machine too."""

SETTINGS = (
    "registry.path=/dev/null",
    "model.id=stub",
    "model.backend=stub",
    "runtime.scheduler.max_batch_size=8",
    f"runtime.stub.step_s={STEP_S}",
    "queue.lease_s=2",
    "streams.resume_grace_s=20",
    "tape.ack_timeout_s=5",
)
HEADERS = {"authorization": f"Bearer {KEY}"}
NUM_TRIES = 3
"""A machine that was busy with something else just then is not so every time."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    try:
        running = LocalFleet(tmp_path_factory.mktemp("fleet"), SETTINGS, free_ports)
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
        deadline_s = time.monotonic() + 240
        while not self.done and time.monotonic() < deadline_s:
            try:
                self._read()
            except httpx.HTTPError:
                self.num_resumed += 1
                time.sleep(0.2)
        return self

    def _read(self) -> None:
        timeout = httpx.Timeout(60, connect=20)
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
        deadline_s = time.monotonic() + 120
        while any(len(reading.texts) < 5 for reading in readings):
            assert time.monotonic() < deadline_s, [(reading.id, len(reading.texts)) for reading in readings]
            time.sleep(0.02)
        during()
        return [future.result() for future in futures]


def assert_whole(readings: list[Reading]) -> None:
    """Every stream ended, with every token once."""
    for reading in readings:
        assert reading.done, (reading.id, len(reading.texts))
        # Each word of the stub is a token, but its first, which is longer.
        assert len("".join(reading.texts).split()) == NUM_TOKENS


def test_tokens_come_through_the_proxy_one_by_one(fleet: LocalFleet) -> None:
    num_gaps = 0
    for number in range(NUM_TRIES):
        reading = Reading(fleet, f"alone {number}").run()
        assert_whole([reading])
        gaps = [after - before for before, after in zip(reading.times, reading.times[1:], strict=False)]
        # None of them waited for the others.
        assert reading.times[-1] - reading.times[0] > NUM_TOKENS * STEP_S / 2
        num_gaps = sum(gap > STEP_S / 3 for gap in gaps)
        if num_gaps > NUM_TOKENS // 2:
            break
    assert num_gaps > NUM_TOKENS // 2


def test_the_proxy_shows_no_metrics(fleet: LocalFleet) -> None:
    get = partial(httpx.get, timeout=60)
    assert get(f"{fleet.url}/metrics").status_code == 404
    assert get(f"http://127.0.0.1:{fleet.api_ports[0]}/metrics").status_code == 200
    # The operator's page asks for its numbers with a key.
    assert get(f"{fleet.url}/v1/admin/metrics").status_code == 401
    assert "inferflux_workers" in get(f"{fleet.url}/v1/admin/metrics", headers=HEADERS).text
    assert get(f"{fleet.url}/ui").status_code == 200


def test_every_stream_outlives_a_worker(fleet: LocalFleet) -> None:
    assert_whole(answers(fleet, 8, "worker", lambda: fleet.kill("worker-1")))
    fleet.start_worker(0)
    fleet.until_ready(f"http://127.0.0.1:{fleet.probe_ports[0]}/readyz")


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
