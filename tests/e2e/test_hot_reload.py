"""Models come, become the default, and go, while clients stream: none of them notices, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from chaos.conftest import Scale
from chaos.conftest import scale as scale
from harness.crowd import Crowd, Outcome, crowd
from harness.fleet import deadline
from harness.model import model_path
from harness.server import KEY, WAIT_S, Server, running_server

pytestmark = pytest.mark.integration

NUM_CLIENTS = 32
NUM_TOKENS = 24
STEP_S = 0.01
SHORT_ROUNDS, LONG_ROUNDS = 3, 60
WARM_UP_ROUNDS = 1
MAX_GROWTH_BYTES = 24 * 1024 * 1024
"""Of one worker's resident memory: an engine that is not freed holds more."""


class Operator:
    """Loads and unloads models over the admin API, and knows when every worker and replica has followed."""

    def __init__(self, server: Server, client: httpx.AsyncClient) -> None:
        self._server = server
        self._client = client

    async def call(self, method: str, path: str, body: Any = None, *, replica: int = 0) -> dict[str, Any]:
        url = f"{self._server.urls[replica]}/v1/{path}"
        response = await self._client.request(method, url, json=body, headers={"authorization": f"Bearer {KEY}"})
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def load(self, model: str, **fields: Any) -> None:
        await self.call("POST", "admin/models", {"id": model, **fields})
        await self._until(lambda states: model in states and all(states[model]), f"{model} on every worker")
        await self._until_heard(lambda models: model in models, f"replicas hear of {model}")

    async def unload(self, model: str) -> None:
        await self.call("DELETE", f"admin/models/{model}")
        await self._until(lambda states: model not in states, f"{model} is gone")
        await self._until_heard(lambda models: model not in models, f"replicas hear that {model} is gone")

    async def idle(self) -> None:
        """Return once nothing runs; no page is held then."""

        async def pages() -> int:
            caches = (await self.call("GET", "admin/cache"))["workers"]
            return sum(cache["num_pages_used"] for cache in caches)

        async with deadline(WAIT_S, "every page is given back"):
            while await pages():
                await asyncio.sleep(0.1)

    async def _until(self, condition: Callable[[dict[str, list[bool]]], bool], what: str) -> None:
        async with deadline(WAIT_S, what):
            while True:
                data = (await self.call("GET", "admin/models"))["data"]
                states = {
                    model["id"]: [each["current"] and each["state"] == "ready" for each in model["workers"]]
                    for model in data
                }
                if condition({name: ready for name, ready in states.items() if ready}):
                    num_workers = {len(ready) for ready in states.values() if ready}
                    if num_workers == {len(self._server.worker_pids())}:
                        return
                await asyncio.sleep(0.05)

    async def _until_heard(self, condition: Callable[[set[str]], bool], what: str) -> None:
        """Every replica accepts what it knows of itself."""
        async with deadline(WAIT_S, what):
            for replica in range(len(self._server.urls)):
                while True:
                    data = (await self.call("GET", "models", replica=replica))["data"]
                    if condition({model["id"] for model in data}):
                        break
                    await asyncio.sleep(0.05)


@asynccontextmanager
async def operating(server: Server) -> AsyncIterator[Operator]:
    async with httpx.AsyncClient(timeout=60) as client:
        yield Operator(server, client)


def resident_bytes(server: Server) -> dict[int, int]:
    gc.collect()
    return {pid: psutil.Process(pid).memory_info().rss for pid in server.worker_pids()}


async def test_models_come_and_go_while_32_clients_stream(tmp_path: Path, scale: Scale) -> None:
    """Fails when an engine is closed under what it runs, when what was queued for a model is left there, when another
    default touches what was accepted for the last one, and when an engine stays in memory."""
    settings = {"runtime": {"scheduler": {"max_batch_size": 16}, "stub": {"step_s": STEP_S}}}
    with running_server(tmp_path / "serve", num_replicas=2, num_workers=2, settings=settings) as server:
        async with operating(server) as operator, crowd() as clients:
            await _churn(server, operator, clients, range(WARM_UP_ROUNDS))
            before = resident_bytes(server)
            num_rounds = LONG_ROUNDS if scale.long else SHORT_ROUNDS
            outcomes = await _churn(server, operator, clients, range(WARM_UP_ROUNDS, WARM_UP_ROUNDS + num_rounds))
            after = resident_bytes(server)
    for outcome in outcomes:
        outcome.assert_exact()
    assert len(outcomes) >= NUM_CLIENTS * num_rounds
    growth = {pid: after[pid] - before[pid] for pid in before}
    print(f"{len(outcomes)} answers; growth of the workers: {[f'{each / 1e6:.1f} MB' for each in growth.values()]}")
    assert max(growth.values()) < MAX_GROWTH_BYTES


async def _churn(server: Server, operator: Operator, clients: Crowd, rounds: range) -> list[Outcome]:
    """Every round a model is loaded as the default, used by name, given up as the default, and unloaded."""
    names: list[str | None] = ["stub", None, None]
    stop = asyncio.Event()
    running = [asyncio.create_task(_stream(server, clients, number, names, stop)) for number in range(NUM_CLIENTS)]
    try:
        for number in rounds:
            model = f"extra-{number}"
            await operator.load(model, backend="stub", default=True, max_batch_size=8)
            names[2] = model
            await _until_streaming(clients, model)
            names[2] = None
            await _until_accepted(clients, model)
            if number % 2:
                await operator.call("PUT", "admin/models/default", {"id": None})
            await operator.unload(model)
    finally:
        stop.set()
    outcomes = [outcome for results in await asyncio.gather(*running) for outcome in results]
    await operator.idle()
    return outcomes


async def _stream(
    server: Server, clients: Crowd, number: int, names: list[str | None], stop: asyncio.Event
) -> list[Outcome]:
    outcomes = []
    for count in itertools.count():
        if stop.is_set():
            return outcomes
        url = server.urls[(number + count) % len(server.urls)]
        model = names[number % len(names)]
        prompt = f"{model} client {number} request {count}"
        outcomes.append(await clients.ask(url, prompt, NUM_TOKENS, model=model))
    raise AssertionError("unreachable")


async def _until_streaming(clients: Crowd, model: str) -> None:
    """Return once that model streams to clients."""
    async with deadline(WAIT_S, f"streams of {model}"):
        while not any(outcome.first_s for outcome in clients.outcomes if outcome.prompt.startswith(model)):
            await asyncio.sleep(0.02)


async def _until_accepted(clients: Crowd, model: str) -> None:
    """Return once every request that names the model was accepted: one that comes after it has gone is a 404."""
    async with deadline(WAIT_S, f"requests for {model} are accepted"):
        while not all(outcome.status for outcome in clients.outcomes if outcome.prompt.startswith(model)):
            await asyncio.sleep(0.02)


@pytest.mark.model
async def test_a_real_model_is_loaded_and_unloaded_beside_another(tmp_path: Path) -> None:
    model = Path(model_path())
    settings = {
        "runtime": {"scheduler": {"max_batch_size": 8}, "llamacpp": {"context_length": 256}},
        "registry": {"roots": [str(model.parent)]},
    }
    with running_server(tmp_path / "serve", model=model, num_workers=1, settings=settings) as server:
        async with operating(server) as operator, crowd() as clients:
            first = await _serve_beside(server, operator, clients, model, "warm-up")
            before = resident_bytes(server)
            second = await _serve_beside(server, operator, clients, model, "again")
            after = resident_bytes(server)
    for outcome in (*first, *second):
        assert (outcome.status, outcome.error, outcome.done) == (200, None, True)
    growth = [after[pid] - before[pid] for pid in before]
    print(
        f"{len(second)} answers; growth of the worker: {max(growth) / 1e6:.1f} MB of {max(after.values()) / 1e6:.0f} MB"
    )
    assert max(growth) < MAX_GROWTH_BYTES


async def _serve_beside(server: Server, operator: Operator, clients: Crowd, model: Path, name: str) -> list[Outcome]:
    """Streams of the model that is there go on while another engine of its file comes, answers and goes."""
    stop = asyncio.Event()
    names: list[str | None] = [model.stem]
    running = [asyncio.create_task(_stream(server, clients, number, names, stop)) for number in range(4)]
    try:
        await operator.load(name, path=str(model), context_length=256, max_batch_size=4)
        mine = [await clients.ask(server.url, "The sea", 8, model=name)]
        await operator.unload(name)
    finally:
        stop.set()
    outcomes = [outcome for results in await asyncio.gather(*running) for outcome in results]
    await operator.idle()
    return outcomes + mine
