"""What clients of a whole InferFlux see when its processes are killed, frozen and restarted under them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest
from chaos.conftest import Scale
from harness.crowd import Crowd, crowd
from harness.fleet import deadline, stub_text
from harness.server import Server, running_server

from inferflux.api.identity import key_of
from inferflux.broker.credentials import ROLE_WORKER
from inferflux.broker.errors import Code
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.wire.requests import Claim
from inferflux.config.settings import BrokerSettings, Settings

pytestmark = pytest.mark.integration

NUM_SLOTS = 64
STEP_S = 0.15
"""An answer lasts until all others have begun, on a busy machine too."""

LEASE_S = 3.0
NUM_TOKENS = 60

DRAIN_S = 0.5
FOUND_S = 30.0
"""What a machine that is busy with something else may add; an engine that hangs would be found after a minute."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two replicas and two workers of 64 slots."""
    settings = {
        "runtime": {"scheduler": {"max_batch_size": NUM_SLOTS}, "stub": {"step_s": STEP_S}},
        "queue": {"lease_s": LEASE_S},
        "worker": {"drain_timeout_s": DRAIN_S},
    }
    with running_server(tmp_path_factory.mktemp("chaos"), num_replicas=2, num_workers=2, settings=settings) as server:
        yield server


async def test_kill_9_of_a_worker_with_64_requests_in_flight(server: Server, scale: Scale) -> None:
    """Fails when the prompt is acked before its terminal frame, and when an attempt does not resume from the tape."""
    for number in range(scale.rounds):
        prompts = [f"round {number} prompt {each}" for each in range(2 * NUM_SLOTS)]
        async with crowd() as clients:
            asking = asyncio.create_task(clients.all(server.urls, prompts, NUM_TOKENS))
            victim = await _worker(server, NUM_SLOTS)
            os.kill(victim, signal.SIGKILL)
            outcomes = await asking
        for outcome in outcomes:
            outcome.assert_exact()
        await asyncio.to_thread(server.wait_ready, 2)


async def test_a_frozen_worker_loses_its_requests_within_the_lease(server: Server, scale: Scale) -> None:
    """Fails when leases are extended without progress, and when a terminal frame has no fence."""
    for number in range(scale.rounds):
        async with crowd() as clients:
            prompts = [f"frozen {number} prompt {each}" for each in range(32)]
            asking = asyncio.create_task(clients.all(server.urls, prompts, NUM_TOKENS))
            zombie = await _worker(server, 8)
            os.kill(zombie, signal.SIGSTOP)
            frozen_s = time.monotonic()
            try:
                outcomes = await asking
            finally:
                os.kill(zombie, signal.SIGCONT)
        for outcome in outcomes:
            outcome.assert_exact()
        # One lease, and then the whole answer at most. The zombie has stood still all the time.
        assert max(outcome.ended_s for outcome in outcomes) - frozen_s < LEASE_S + FOUND_S + NUM_TOKENS * STEP_S
        dropped = partial(server.wait_until, "the zombie drops it", lambda: "claim lost" in server.log_text())
        await asyncio.to_thread(dropped)
        await asyncio.to_thread(server.wait_ready, 2)


async def test_kill_9_of_a_replica_with_100_streams(server: Server, scale: Scale) -> None:
    """Fails when a resumed stream does not go on after its mark, and when the survivor cancels what it finds."""
    for number in range(scale.rounds):
        async with crowd() as clients:
            prompts = [f"replica {number} prompt {each}" for each in range(100)]
            pid = server.get("/v1/admin/status").json()["pid"]
            asking = asyncio.create_task(clients.all(server.urls[:1], prompts, NUM_TOKENS))
            await _begun(clients, 100)
            os.kill(pid, signal.SIGKILL)
            outcomes = await asking
            assert not any(outcome.done for outcome in outcomes), "the replica outlived its streams"
            await asyncio.gather(*(clients.resume(server.urls[1], outcome) for outcome in outcomes))
        for outcome in outcomes:
            outcome.assert_exact()
        await asyncio.to_thread(server.wait_ready, 2)


async def test_a_drain_that_takes_too_long_hands_back(server: Server, scale: Scale) -> None:
    """Fails when a drain counts as a lost worker, and when a worker that is told to stop drops what it runs."""
    for number in range(scale.rounds):
        async with crowd() as clients:
            prompts = [f"drain {number} prompt {each}" for each in range(32)]
            asking = asyncio.create_task(clients.all(server.urls, prompts, NUM_TOKENS))
            await _begun(clients, len(prompts))
            leaving = await _worker(server, 8)
            os.kill(leaving, signal.SIGTERM)
            outcomes = await asking
        for outcome in outcomes:
            outcome.assert_exact()
        claims = await _claims(server, [outcome.request for outcome in outcomes])
        handed_back = [each for each in claims if "released" in [claim.state for claim in each]]
        assert len(handed_back) >= 8, "nothing outlasted the drain"
        for each in handed_back:
            assert [claim.state for claim in each] == ["running", "released", "running"]
            assert each[-1].worker != each[0].worker
        assert {claim.num_attempts for each in claims for claim in each} == {1}
        await asyncio.to_thread(server.wait_ready, 2)


async def test_a_lost_tape_never_splices_an_answer(server: Server, scale: Scale) -> None:
    """Fails when a reader trusts every frame. The only NATS server dies, and its tape was in memory."""
    for number in range(scale.rounds):
        async with crowd() as clients:
            prompts = [f"tape {number} prompt {each}" for each in range(16)]
            asking = asyncio.create_task(clients.all(server.urls, prompts, NUM_TOKENS))
            await _begun(clients, 16)
            os.kill(_nats_pid(server), signal.SIGKILL)
            outcomes = await asking
        for outcome in outcomes:
            if outcome.error == Code.STREAM_DIVERGED:
                assert stub_text(outcome.prompt, NUM_TOKENS).startswith(outcome.text)
            else:
                outcome.assert_exact()
        await asyncio.to_thread(server.wait_ready, 2)


async def _begun(clients: Crowd, number: int) -> None:
    """Return when so many clients have had a token."""
    async with deadline(60, "all streams have begun"):
        while sum(bool(outcome.texts) for outcome in clients.outcomes) < number:
            await asyncio.sleep(0.02)


async def _claims(server: Server, requests: list[str]) -> list[tuple[Claim, ...]]:
    """All claims of each request, oldest first."""
    settings = Settings(broker=BrokerSettings(store_dir=str(server.store_dir)))
    broker = await JetStreamBroker.connect(settings, ROLE_WORKER, "test")
    try:
        return [await broker.claims(key_of(request)) for request in requests]
    finally:
        await broker.close()


async def _worker(server: Server, number: int) -> int:
    """The process id of a worker, once it runs so many requests."""
    found: list[int] = []

    def look() -> bool:
        running = Counter(server.holders().values())
        found[:] = [pid for pid, count in running.items() if count >= number]
        return bool(found)

    await asyncio.to_thread(server.wait_until, "a worker is busy", look)
    return found[0]


def _nats_pid(server: Server) -> int:
    return next(int(child.pid) for child in server.children() if "nats-server" in child.name())
