"""A whole worker with the torch backend over the broker in memory: prompts in, frames out, as a direct publisher sees
them. Neither HTTP nor NATS is in it, so nothing has to be installed for it.

    benchmarks/gpu/run.sh --rehearse
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import string
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from prometheus_client import CollectorRegistry
from shapes_gpu import SHAPES, write_model

from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass, tenant_owner
from inferflux.broker.wire.requests import Frame, decode_frame
from inferflux.config.metrics import WorkerMetrics
from inferflux.config.settings import (
    RuntimeSettings,
    SchedulerSettings,
    Settings,
    TenantSettings,
    TorchSettings,
    WorkerSettings,
)
from inferflux.registry.control import Control
from inferflux.registry.store import PolicyStore
from inferflux.registry.tenants import Tenants
from inferflux.workers.backends.opening import open_backend
from inferflux.workers.host import ModelHost
from inferflux.workers.meter import Meter
from inferflux.workers.reader import PromptReader
from inferflux.workers.seal import Sealer
from inferflux.workers.worker import Worker

TENANT, MODEL = "bench", "model"
LANE = Lane(MODEL, ServiceClass.DEFAULT, TENANT)
READY_TIMEOUT_S = 600.0


class Rate(msgspec.Struct, frozen=True):
    """Of one closed loop: output tokens a second of all clients, and seconds to the first token."""

    num_clients: int
    tokens_per_s: float
    first_p50_s: float
    first_p99_s: float


class Publisher:
    """Publishes prompts and hears their frames."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._queues: dict[str, asyncio.Queue[Frame]] = {}
        self._num_asked = 0

    async def listen(self) -> None:
        await self._broker.listen_replies(tenant_owner(TENANT), lambda reply: self._take(reply.key, reply.body))

    def _take(self, key: RequestKey, body: bytes) -> None:
        self._queues[key.request].put_nowait(decode_frame(body))

    async def ask(self, num_prompt: int, num_answer: int) -> tuple[int, float]:
        """Tokens that came, and seconds to the first. Raises RuntimeError when the request failed."""
        self._num_asked += 1
        request = f"r{self._num_asked}"
        frames = self._queues[request] = asyncio.Queue()
        letters = random.Random(self._num_asked).choices(string.ascii_lowercase, k=num_prompt)
        fields = {"type": "completion", "id": request, "prompt": "".join(letters), "max_tokens": num_answer}
        body = msgspec.json.encode({**fields, "temperature": 0.0, "ignore_eos": True})
        began_s = time.perf_counter()
        await self._broker.publish_prompt(LANE, body, msg_id=request, headers={})
        first_s = 0.0
        while True:
            frame = await frames.get()
            first_s = first_s or time.perf_counter() - began_s
            if frame.error is not None:
                raise RuntimeError(f"{request}: {frame.error.message}")
            if frame.usage is not None:
                del self._queues[request]
                return frame.usage.completion_tokens, first_s


def settings_for(device: str, num_sequences: int, context_length: int) -> Settings:
    runtime = RuntimeSettings(
        scheduler=SchedulerSettings(max_batch_size=num_sequences, max_batch_tokens=max(2048, num_sequences)),
        torch=TorchSettings(device=device, context_length=context_length),  # type: ignore[arg-type]
    )
    tenants = (TenantSettings(id=TENANT, max_running=num_sequences),)
    return Settings(runtime=runtime, tenants=tenants, worker=WorkerSettings(drain_timeout_s=5.0))


@contextlib.asynccontextmanager
async def worker_on(path: Path, settings: Settings) -> AsyncIterator[Publisher]:
    """A worker that is ready, and who talks to it."""
    hub = MemoryHub(settings=settings)
    metrics = WorkerMetrics(CollectorRegistry())
    broker, tenants = MemoryBroker(hub), Tenants.from_settings(settings)
    host = ModelHost(MODEL, open_backend("torch", str(path), settings.runtime), settings.runtime, metrics)
    reader = PromptReader(Stamper(random.randbytes(32)), Sealer(random.randbytes(32)), tenants)
    control = Control(settings, PolicyStore(broker), tenants)
    worker = Worker(settings, broker, [host], control, reader, Meter(metrics))
    task = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while host.state == "loading":
                await asyncio.sleep(0.05)
        if host.state == "failed":
            raise RuntimeError(f"the worker is not ready: {host.reason}")
        publisher = Publisher(MemoryBroker(hub))
        await publisher.listen()
        yield publisher
    finally:
        worker.stop()
        await task


async def closed_loop(publisher: Publisher, num_clients: int, num_waves: int, prompt: int, answer: int) -> Rate:
    """Each client asks again when it has its answer."""

    async def client() -> list[tuple[int, float]]:
        return [await publisher.ask(prompt, answer) for _ in range(num_waves)]

    began_s = time.perf_counter()
    answers = [each for own in await asyncio.gather(*(client() for _ in range(num_clients))) for each in own]
    took_s = time.perf_counter() - began_s
    firsts = sorted(first_s for _, first_s in answers)
    return Rate(
        num_clients,
        sum(count for count, _ in answers) / took_s,
        firsts[len(firsts) // 2],
        firsts[min(len(firsts) - 1, len(firsts) * 99 // 100)],
    )


async def measure(path: Path, device: str, clients: Sequence[int], waves: int, prompt: int, answer: int) -> list[Rate]:
    """One worker, loops of one size after the other; the first round of each does not count."""
    async with worker_on(path, settings_for(device, max(clients), prompt + answer + 16)) as publisher:
        rates = []
        for count in clients:
            await closed_loop(publisher, count, 1, prompt, answer)
            rates.append(await closed_loop(publisher, count, waves, prompt, answer))
        return rates


def main() -> None:
    arguments = _arguments()
    names = ["0.6B"] if arguments.quick else arguments.shapes.split(",")
    clients = [int(count) for count in arguments.clients.split(",")]
    print("end to end | clients | output tokens/s | first token p50 ms | p99 ms")
    for name in names:
        with TemporaryDirectory() as folder:
            path = write_model(Path(folder, name), SHAPES[name])
            rates = asyncio.run(
                measure(path, arguments.device, clients, arguments.waves, arguments.prompt, arguments.answer)
            )
        for rate in rates:
            firsts = f"{rate.first_p50_s * 1000:.1f} | {rate.first_p99_s * 1000:.1f}"
            print(f"{name} | {rate.num_clients} | {rate.tokens_per_s:.1f} | {firsts}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="a whole worker over the broker in memory")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--quick", action="store_true", help="the smallest shape only")
    parser.add_argument("--shapes", default="0.6B,1.7B,8B")
    parser.add_argument("--clients", default="1,32,256")
    parser.add_argument("--waves", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt, none of which others share")
    parser.add_argument("--answer", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main()
