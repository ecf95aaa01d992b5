"""An operator at work on a running InferFlux: what is given up, what nobody pulls, weights, and views of it all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import nats
import pytest
from harness.publisher import ME, connected
from harness.server import KEY, PUBLISHER, Server, running_server
from nats.aio.client import Client

from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import RequestKey
from inferflux.broker.wire.requests import Claim
from inferflux.config.settings import BrokerSettings, Settings

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two replicas, which sweep both, and two workers with a slow stub of one slot each."""
    settings = {
        "runtime": {"scheduler": {"max_batch_size": 1}, "stub": {"step_s": 0.02}},
        "queue": {"lease_s": 3.0, "no_backend_grace_s": 1.0},
    }
    folder = tmp_path_factory.mktemp("operate")
    with running_server(folder, num_replicas=2, num_workers=2, settings=settings) as server:
        yield server


@pytest.fixture
async def publisher(server: Server) -> AsyncIterator[Client]:
    """A tenant's own connection."""
    async with connected(server) as wire:
        yield wire.client


def inferctl(server: Server, *arguments: str, replica: int = 0) -> Any:
    """What a command prints as JSON, lines of it as a list."""
    environ = os.environ | {"INFERCTL_URL": server.urls[replica], "INFERCTL_API_KEY": KEY}
    command = [sys.executable, "-m", "inferflux.cli.main", *arguments, "--json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines[0] if len(lines) == 1 else lines


async def publish(client: Client, request: str, *, model: str = "stub", **fields: Any) -> int:
    body = {"type": "completion", "id": request, "prompt": "the words", "max_tokens": 4} | fields
    lane = f"inferflux.infer.{model}.default.{PUBLISHER}"
    ack = await client.request(lane, json.dumps(body).encode(), timeout=60, headers={"Nats-Msg-Id": f"{ME}.{request}"})
    return int(json.loads(ack.data)["seq"])


async def end(client: Client, subject: Any) -> dict[str, Any]:
    """The terminal frame; fails when there is another one within a moment."""
    frame: dict[str, Any] = {}
    while not ("usage" in frame or "error" in frame):
        frame = json.loads((await subject.next_msg(timeout=60)).data)
    with pytest.raises(nats.errors.TimeoutError):
        await subject.next_msg(timeout=0.5)
    return frame


async def test_given_up_is_kept_shown_retried_and_gone(server: Server, publisher: Client) -> None:
    replies = await publisher.subscribe(f"inferflux.reply.{ME}.poison")
    seq = await publish(publisher, "before")
    settings = Settings(broker=BrokerSettings(store_dir=str(server.store_dir)))
    worker = await JetStreamBroker.connect(settings, "worker", "test")
    claim = Claim(worker="lost-1", prompt=seq + 1, num_attempts=3, at=time.time())
    await worker.put_claim(RequestKey(ME, "poison"), claim, expected_seq=0)
    await worker.close()
    assert await publish(publisher, "poison") == seq + 1

    assert (await end(publisher, replies))["error"]["code"] == "attempts_exhausted"

    (letter,) = inferctl(server, "queue", "dead", "list")
    assert letter["id"] == f"{ME}.poison"
    assert [attempt["worker"] for attempt in letter["attempts"]] == ["lost-1"]
    assert "the words" not in json.dumps(letter)
    assert "inferflux_dead_letters 1.0" in server.get("/metrics", replica=1).text
    assert inferctl(server, "queue", "dead", "show", letter["id"], replica=1)["prompt"]["prompt"] == "the words"
    retried = inferctl(server, "queue", "dead", "retry", letter["id"])
    assert retried["usage"]["completion_tokens"] == 4
    assert retried["choices"][0]["text"]
    assert inferctl(server, "queue", "dead", "list") == []
    assert "the words" not in server.log_text()


async def test_publisher_without_a_worker_is_told_once(server: Server, publisher: Client) -> None:
    replies = await publisher.subscribe(f"inferflux.reply.{ME}.nobody")
    await publish(publisher, "nobody", model="no-such-model")

    error = (await end(publisher, replies))["error"]

    assert error["code"] == "no_backend"
    # The end is told first, and then the prompt goes.
    server.wait_until("nothing is queued", lambda: inferctl(server, "queue") == [])


async def test_deadline_passes_and_queued_is_cancelled_while_workers_are_busy(
    server: Server, publisher: Client
) -> None:
    late = await publisher.subscribe(f"inferflux.reply.{ME}.late")
    cancelled = await publisher.subscribe(f"inferflux.reply.{ME}.unwanted")
    for number in range(2):
        await publish(publisher, f"busy{number}", max_tokens=6000, ignore_eos=True)
    server.wait_until("both slots are taken", lambda: inferctl(server, "queue")[0]["num_running"] == 2)
    for request in ("unwanted", "patient"):
        await publish(publisher, request)

    (lane,) = inferctl(server, "queue")
    assert (lane["tenant"], lane["depth"], lane["num_waiting"]) == (PUBLISHER, 4, 2)
    assert 0 < lane["oldest_age_s"] < 600
    await publish(publisher, "late", deadline=time.time() + 1)
    assert inferctl(server, "queue", "cancel", f"{ME}.unwanted", replica=1)["state"] == "cancelled"
    assert (await end(publisher, cancelled))["error"]["code"] == "cancelled"
    assert (await end(publisher, late))["error"]["code"] == "queue_timeout"
    seen = inferctl(server, "top", "--once")
    assert sum(model["num_running"] for worker in seen["workers"] for model in worker["models"]) == 2
    fleet = inferctl(server, "fleet")
    assert len(fleet) == 2
    assert all(worker["age_s"] < 600 for worker in fleet)
    for request in ("patient", "busy0", "busy1"):
        inferctl(server, "queue", "cancel", f"{ME}.{request}")
    server.wait_until("nothing is queued", lambda: inferctl(server, "queue") == [])


def test_weights_reach_every_worker(server: Server) -> None:
    answer = inferctl(server, "admin", "fairness", "--set-weight", f"{PUBLISHER}=4", "--set-share", "batch=0.1")
    assert answer["weights"] == {PUBLISHER: 4}
    told = f'"weights": "{PUBLISHER}=4"'

    server.wait_until(
        "both workers follow",
        lambda: (
            sum(
                '"process": "worker-' in line and "fairness applied" in line and told in line
                for line in server.log_text().splitlines()
            )
            == 2
        ),
    )
    assert inferctl(server, "admin", "fairness", "--get", replica=1)["min_share"] == {"default": 0.2, "batch": 0.1}


@pytest.mark.parametrize("command", ["status", "fleet", "queue", "top --once", "queue dead list", "admin fairness"])
def test_what_people_read_is_drawn_from_what_the_server_says(server: Server, command: str) -> None:
    environ = os.environ | {"INFERCTL_URL": server.url, "INFERCTL_API_KEY": KEY}
    arguments = [sys.executable, "-m", "inferflux.cli.main", *command.split()]
    done = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr
