"""Workers of this process over a real NATS, each with fault points, and a client that reads the tape."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass, tenant_owner
from inferflux.broker.wire.requests import Frame, decode_frame
from inferflux.config.metrics import WorkerMetrics
from inferflux.config.settings import (
    QueueSettings,
    RuntimeSettings,
    SchedulerSettings,
    Settings,
    StubSettings,
    TapeSettings,
    WorkerSettings,
)
from inferflux.registry.control import Control
from inferflux.registry.store import PolicyStore
from inferflux.registry.tenants import Tenants
from inferflux.workers.backends.backend import Chunk, Sample, SamplingParams
from inferflux.workers.backends.stub import FIRST_WORD, WORDS, StubBackend
from inferflux.workers.host import ModelHost
from inferflux.workers.meter import Meter
from inferflux.workers.reader import PromptReader
from inferflux.workers.render import Renderer
from inferflux.workers.seal import Sealer
from inferflux.workers.worker import Worker

from .faults import Faults, Faulty
from .nats import NatsServers

STAMP_SECRET, SEAL_SECRET = b"the secret of the stamps", b"the secret of the seals"
TENANT = "acme"
PROMPT = "Tell me about the sea"
LEASE_S = 2.0
"""A worker extends it three times: a busy machine may stop this process for a while."""

_numbers = itertools.count(1)


class FleetBackend(StubBackend):
    """The stub, which can be made to hang, and whose words can differ from another worker's."""

    def __init__(self, settings: RuntimeSettings, shift: int = 0) -> None:
        super().__init__(settings)
        self.running = threading.Event()
        self.running.set()
        self._shift = shift

    def run(self, batch: Sequence[Chunk]) -> list[Sample]:
        self.running.wait()
        return [self._shifted(sample) for sample in super().run(batch)]

    def _shifted(self, sample: Sample) -> Sample:
        if self._shift == 0 or sample.token is None or sample.token <= FIRST_WORD:
            return sample
        word = (sample.token - FIRST_WORD - 1 + self._shift) % len(WORDS)
        return msgspec.structs.replace(sample, token=FIRST_WORD + 1 + word)


class FleetWorker:
    """A worker and what is wrong with it."""

    def __init__(self, worker: Worker, backend: FleetBackend, faults: Faults, broker: JetStreamBroker) -> None:
        self.worker = worker
        self.backend = backend
        self.faults = faults
        self._broker = broker
        self._task = asyncio.create_task(worker.run())

    async def drain(self) -> None:
        """As SIGTERM does."""
        self.worker.stop()
        await self._task

    async def close(self) -> None:
        self.backend.running.set()
        # What hangs at a fault point will never end by itself.
        pending = {self._task, *self.worker._tasks, *(t for m in self.worker.mounts.values() for t in m.intake._pulls)}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._broker.close()


class Fleet:
    """Workers of one model, which no other fleet of the same NATS serves."""

    def __init__(self, servers: NatsServers, settings: Settings | None = None) -> None:
        given = fleet_settings() if settings is None else settings
        self.settings = msgspec.structs.replace(given, broker=servers.settings.broker)
        self.model = f"stub-{next(_numbers)}"
        self.lane = Lane(self.model, ServiceClass.DEFAULT, TENANT)
        self.workers: list[FleetWorker] = []
        self._servers = servers
        self._metrics = WorkerMetrics(CollectorRegistry())
        self._client: JetStreamBroker | None = None

    async def __aenter__(self) -> Fleet:
        self._client = await self._servers.connect("api", settings=self.settings)
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self.workers:
            await worker.close()
        await self.client.close()

    @property
    def client(self) -> JetStreamBroker:
        assert self._client is not None
        return self._client

    def key(self, request: str) -> RequestKey:
        return RequestKey(tenant_owner(self.lane.tenant), request)

    async def start_worker(self, shift: int = 0) -> FleetWorker:
        broker = await self._servers.connect("worker", settings=self.settings)
        faults = Faults()
        tenants = Tenants.from_settings(self.settings)
        backend = FleetBackend(self.settings.runtime, shift)
        host = ModelHost(self.model, backend, self.settings.runtime, self._metrics)
        control = Control(self.settings, PolicyStore(broker), tenants)
        reader = PromptReader(Stamper(STAMP_SECRET), Sealer(SEAL_SECRET), tenants)
        faulty: Any = Faulty(broker, faults)
        worker = Worker(self.settings, faulty, [host], control, reader, Meter(self._metrics))
        worker.id = f"worker-{next(_numbers)}"
        self.workers.append(FleetWorker(worker, backend, faults, broker))
        return self.workers[-1]

    async def publish(self, max_tokens: int = 32, *, lane: Lane | None = None, **body: Any) -> str:
        """Store a prompt and return its request id."""
        request = f"r{next(_numbers)}"
        fields = {"type": "completion", "id": request, "prompt": PROMPT, "max_tokens": max_tokens} | body
        await self.client.publish_prompt(lane or self.lane, msgspec.json.encode(fields), msg_id=request)
        return request

    async def tape(self, request: str) -> list[Frame]:
        """What the tape holds of a request now."""
        stored = await self.client.read_tape(self.key(request))
        return [decode_frame(entry.body) for entry in stored.frames]

    async def until_tokens(self, request: str, num_tokens: int) -> None:
        """Return once that many tokens are on the tape."""
        async with deadline(60, f"{num_tokens} tokens of {request}"):
            while sum(frame.num_tokens for frame in await self.tape(request)) < num_tokens:
                await asyncio.sleep(0.01)

    async def answer(self, request: str, *, within_s: float = 60) -> list[Frame]:
        """All frames once the request has ended and its prompt is gone. Fails when that does not come in time, and at
        once when the prompt goes first."""
        async with deadline(within_s, f"the end of {request}"):
            while True:
                backlog = await self.client.backlog(self.model)
                if any(frame.terminal for frame in await self.tape(request)):
                    break
                assert backlog, f"the prompt of {request} is gone, and it has not ended"
                await asyncio.sleep(0.02)
            while await self.client.backlog(self.model):
                await asyncio.sleep(0.02)
        return await self.tape(request)


@contextlib.asynccontextmanager
async def deadline(seconds: float, what: str) -> Any:
    """What does not happen in time is a failed assertion, and no error."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise AssertionError(f"not in {seconds} s: {what}") from None


def fleet_settings(**sections: Any) -> Settings:
    """Short leases, steps of 20 ms, a tape that keeps what has ended, and no frame sent twice without need."""
    defaults: dict[str, Any] = {
        "runtime": RuntimeSettings(scheduler=SchedulerSettings(max_batch_size=8), stub=StubSettings(step_s=0.02)),
        "queue": QueueSettings(lease_s=LEASE_S, resync_interval_s=0.1),
        "tape": TapeSettings(max_bytes=32 * 1024 * 1024, ack_timeout_s=5.0),
        "worker": WorkerSettings(drain_timeout_s=0.1, hang_timeout_s=1.0),
    }
    return Settings(**(defaults | sections))


@functools.cache
def stub_text(prompt: str, num_tokens: int, *, shift: int = 0) -> str:
    """What the stub answers, computed without the system under test."""
    backend = FleetBackend(RuntimeSettings(stub=StubSettings(step_s=0.0)), shift)
    backend.start()
    history = list(Renderer(backend.tokenizer).text(prompt))
    num_prompt = len(history)
    for _ in range(num_tokens):
        chunk = Chunk(
            slot=0,
            start=len(history) - 1,
            tokens=history[-1:],
            block_table=(),
            sampling=SamplingParams(),
            history=tuple(history),
            num_prompt_tokens=num_prompt,
        )
        token = backend.run([chunk])[0].token
        assert token is not None
        history.append(token)
    return b"".join(backend.tokenizer.piece(token) for token in history[num_prompt:]).decode()


def assert_exact(frames: Sequence[Frame], num_tokens: int, prompt: str = PROMPT) -> None:
    """One terminal frame, every token once and in order, and the text that the stub says."""
    assert [frame.terminal for frame in frames] == [False] * (len(frames) - 1) + [True], "not one terminal frame, last"
    assert frames[-1].error is None, frames[-1].error
    position = 0
    for frame in frames:
        assert frame.index == position, f"token {frame.index} came when {position} was next"
        position += frame.num_tokens
    assert position == num_tokens
    assert frames[-1].usage is not None
    assert frames[-1].usage.completion_tokens == num_tokens
    assert "".join(frame.text for frame in frames) == stub_text(prompt, num_tokens)
