"""The same path on three NATS nodes with three copies of everything, under the generated permissions."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from harness.nats import NatsServers
from harness.server import KEY, Server, running_server, tenants
from harness.streaming import Streaming, worker_of

from inferflux.broker.subjects import STREAM_PROMPTS, STREAM_TAPE
from inferflux.config.settings import Settings

pytestmark = [pytest.mark.integration, pytest.mark.cluster]


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    servers = NatsServers(tmp_path_factory.mktemp("nats"), Settings(tenants=tenants()), num_nodes=3)
    servers.start_all()
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def server(nats: NatsServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        # Elections take their time on a busy machine.
        "broker": {"replicas": 3, "timeout_s": 20.0},
        "runtime": {"scheduler": {"max_batch_size": 8}, "stub": {"step_s": 0.03}},
    }
    folder = tmp_path_factory.mktemp("cluster")
    with running_server(
        folder, num_replicas=2, num_workers=2, settings=settings, nats_dir=Path(nats.settings.broker.store_dir)
    ) as server:
        yield server


def test_both_replicas_answer(server: Server) -> None:
    texts = []
    for url in server.urls:
        with openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0, timeout=60) as client:
            answer = client.completions.create(model="stub", prompt="Tell me about the sea", max_tokens=8)
            texts.append(answer.choices[0].text)
    assert texts[0] == texts[1]


def test_a_killed_worker_costs_no_token(server: Server) -> None:
    with Streaming(server) as whole:
        whole.read()
    with Streaming(server) as stream:
        stream.read(5)
        os.kill(worker_of(server, stream), signal.SIGKILL)
        stream.read()
    assert stream.text == whole.text
    server.wait_ready(2)


@pytest.mark.parametrize("stream_name", [STREAM_PROMPTS, STREAM_TAPE])
async def test_a_stream_outlives_the_leader_of_its_broker(server: Server, nats: NatsServers, stream_name: str) -> None:
    with Streaming(server) as whole:
        whole.read()
    with Streaming(server) as stream:
        stream.read(5)
        leader = await nats.leader(stream_name)
        nats.kill(leader)
        try:
            stream.read()
        finally:
            nats.start(leader)
    assert stream.text == whole.text
    # Or the next leader would be killed while this one has nothing yet.
    await nats.until_in_step()
    server.wait_ready(2)
