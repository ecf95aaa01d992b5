"""A worker killed under a real model: what llama.cpp says after it may differ in near-ties only."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from chaos.conftest import Scale
from harness.crowd import Outcome, crowd
from harness.fleet import deadline
from harness.greedy import GreedyReference
from harness.model import model_path
from harness.server import Server, running_server

from inferflux.api.identity import key_of
from inferflux.broker.credentials import ROLE_WORKER, resolve
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.wire.requests import decode_frame
from inferflux.config.settings import BrokerSettings, Settings
from inferflux.workers.replay import Replay
from inferflux.workers.seal import Sealer

pytestmark = [pytest.mark.model, pytest.mark.integration]

NUM_SLOTS = 64
MAX_TOKENS = 48
NEAR_TIE = 0.1
"""In logits: more than batches of other sizes change in the last bits, less than other tokens are worth."""

TOPICS = ("The sea", "A clock", "Rain", "The capital of France", "An old map", "Bread", "A theorem", "The moon")


class Told(msgspec.Struct):
    """One request as its tape tells it: every token, and where each attempt began."""

    tokens: tuple[int, ...]
    starts: list[int]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers of 64 slots with the real model."""
    settings = {
        "runtime": {"scheduler": {"max_batch_size": NUM_SLOTS}, "llamacpp": {"context_length": 256, "threads": 1}},
        "queue": {"lease_s": 5.0},
        # The tapes are looked at when the last answer has come.
        "tape": {"window_s": 900.0},
    }
    folder = tmp_path_factory.mktemp("llamacpp")
    with running_server(folder, model=Path(model_path()), num_workers=2, settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def reference() -> Iterator[GreedyReference]:
    reference = GreedyReference(model_path(), num_threads=1, num_outputs=MAX_TOKENS)
    yield reference
    reference.close()


@pytest.mark.timeout(1200)
async def test_kill_9_of_a_worker_with_64_requests_of_a_real_model(
    server: Server, reference: GreedyReference, scale: Scale
) -> None:
    """Fails when an attempt does not resume from the tape, and when a continuation is not what the model would say."""
    for number in range(scale.rounds):
        prompts = [f"{TOPICS[each % len(TOPICS)]}, story {number}.{each}:" for each in range(2 * NUM_SLOTS)]
        outcomes = await _kill_one_under(server, prompts)
        told = await _tapes(server, outcomes)
        moved = [(outcome, tape) for outcome, tape in zip(outcomes, told, strict=True) if len(tape.starts) > 1]
        assert len(moved) == NUM_SLOTS, "not 64 were in flight"
        for outcome, tape in zip(outcomes, told, strict=True):
            _assert_whole(outcome, tape, reference)
        gaps = {True: [0.0], False: [0.0]}
        for outcome, tape in moved:
            prompt = reference.tokenize(outcome.prompt)
            for position, gap in enumerate(reference.gaps(prompt, tape.tokens)):
                gaps[position >= tape.starts[1]].append(gap)
            other = (*tape.tokens[:-1], tape.tokens[-1] - 1)
            assert reference.gaps(prompt, other)[-1] > NEAR_TIE, "the reference takes any token"
        for after, found in gaps.items():
            num_ties = sum(gap > 0 for gap in found)
            print(f"{'after' if after else 'before'}: {len(found)} tokens, {num_ties} not the best, {max(found):.3f}")
        assert max(gaps[True] + gaps[False]) < NEAR_TIE, "a token that is no near-tie"
        await asyncio.to_thread(server.wait_ready, 2)


async def _kill_one_under(server: Server, prompts: list[str]) -> list[Outcome]:
    """Everybody's answers, of whom half were in mid-answer on the worker that was killed."""
    async with crowd() as clients:
        asking = asyncio.create_task(clients.all(server.urls, prompts, MAX_TOKENS, model="smollm2", temperature=0))
        async with deadline(180, "all answers have begun"):
            while len(clients.outcomes) < len(prompts) or not all(each.texts for each in clients.outcomes):
                await asyncio.sleep(0.01)
        assert not any(outcome.done for outcome in clients.outcomes), "some had ended before all had begun"
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        return await asking


async def _tapes(server: Server, outcomes: list[Outcome]) -> list[Told]:
    settings = Settings(broker=BrokerSettings(store_dir=str(server.store_dir)))
    connection = resolve(settings.broker, ROLE_WORKER)
    assert connection.seal_secret is not None
    sealer = Sealer(connection.seal_secret)
    broker = await JetStreamBroker.connect(settings, ROLE_WORKER, "test", connection=connection)
    told = []
    try:
        for outcome in outcomes:
            key = key_of(outcome.request)
            tape = await broker.read_tape(key)
            assert tape.claim is not None
            first_of: dict[int, int] = {}
            for frame in (decode_frame(entry.body) for entry in tape.frames):
                if frame.num_tokens:
                    first_of.setdefault(frame.attempt, frame.index)
            replay = Replay(tape, sealer.request(key, tape.claim.prompt))
            told.append(Told(replay.choice(0).tokens, list(first_of.values())))
    finally:
        await broker.close()
    return told


def _assert_whole(outcome: Outcome, tape: Told, reference: GreedyReference) -> None:
    """The client has had every token of the tape, once, and each attempt began where the one before had come to."""
    assert (outcome.status, outcome.error, outcome.done) == (200, None, True)
    assert outcome.text == reference.text(tape.tokens)
    assert outcome.num_reported == len(tape.tokens)
    assert outcome.finish_reason == ("length" if len(tape.tokens) == outcome.num_tokens else "stop")
    assert tape.starts == sorted(tape.starts)
    assert tape.starts[0] == 0
