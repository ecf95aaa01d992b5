"""A worker that follows the registry, over the in-memory broker: models come, change and go while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.fleet import deadline, stub_text
from harness.http import Answer, Asked, HttpServer
from prometheus_client import CollectorRegistry

from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.broker.wire.fleet import ModelBeat
from inferflux.broker.wire.policies import ModelRecord, ModelRegistry, WarmPrefix
from inferflux.broker.wire.requests import Frame, Message, decode_frame
from inferflux.config.metrics import WorkerMetrics
from inferflux.config.settings import (
    ModelSettings,
    QueueSettings,
    RuntimeSettings,
    SchedulerSettings,
    Settings,
    StubSettings,
    WorkerSettings,
)
from inferflux.registry import amendments
from inferflux.registry.cache import CacheStore
from inferflux.registry.control import Control
from inferflux.registry.model_store import ModelStore
from inferflux.registry.store import PolicyStore
from inferflux.registry.tenants import Tenants
from inferflux.workers.backends.backend import Chunk, Sample
from inferflux.workers.backends.stub import StubBackend
from inferflux.workers.cache_keeper import CacheKeeper
from inferflux.workers.host import ModelHost
from inferflux.workers.meter import Meter
from inferflux.workers.reader import PromptReader
from inferflux.workers.registrar import Registrar
from inferflux.workers.seal import Sealer
from inferflux.workers.worker import Worker

SETTINGS = Settings(
    runtime=RuntimeSettings(scheduler=SchedulerSettings(max_batch_size=4), stub=StubSettings(step_s=0.005)),
    queue=QueueSettings(lease_s=1.0, resync_interval_s=0.05),
    worker=WorkerSettings(drain_timeout_s=5.0),
)


class Scene:
    """A worker with its registrar and cache keeper, an operator, and a client."""

    def __init__(self, settings: Settings) -> None:
        self.hub = MemoryHub(settings=settings)
        self.client = MemoryBroker(self.hub)
        store = PolicyStore(self.client)
        self.models, self.caches = ModelStore(store), CacheStore(store)
        broker = MemoryBroker(self.hub)
        tenants = Tenants.from_settings(settings)
        self.control = Control(settings, PolicyStore(broker), tenants)
        self.registry = CollectorRegistry()
        metrics = WorkerMetrics(self.registry)
        self.meter = Meter(metrics)
        reader = PromptReader(Stamper(b"the secret of the stamps"), Sealer(b"the secret of the seals"), tenants)
        self.worker = Worker(settings, broker, (), self.control, reader, self.meter)
        self.registrar = Registrar(settings, self.control, self.worker, metrics)
        self.keeper = CacheKeeper(self.control, self.worker)
        self._tasks = [asyncio.create_task(self.worker.run()), asyncio.create_task(self.registrar.run())]
        self._frames: dict[str, list[Frame]] = {}

    async def close(self) -> None:
        self.worker.stop()
        await self._tasks[0]
        self._tasks[1].cancel()
        await asyncio.gather(self._tasks[1], return_exceptions=True)
        await self.keeper.close()

    async def load(self, name: str, **fields: Any) -> None:
        record = ModelRecord(**({"id": name, "backend": "stub"} | fields))
        await self.models.amend(lambda now: amendments.load(now, record, default=False))

    async def amend(self, amendment: Callable[..., ModelRegistry], *given: Any) -> None:
        await self.models.amend(lambda now: amendment(now, *given))

    def beat(self, model: str) -> ModelBeat | None:
        mount = self.worker.mounts.get(model)
        return None if mount is None else mount.beat()

    async def until(self, model: str, **wanted: Any) -> ModelBeat:
        """The model's part of the heartbeat, once it says so."""
        async with deadline(20, f"{model}: {wanted}"):
            while True:
                beat = self.beat(model)
                if beat is not None and all(getattr(beat, name) == value for name, value in wanted.items()):
                    return beat
                await asyncio.sleep(0.01)

    async def until_gone(self, model: str) -> None:
        async with deadline(20, f"{model} is gone"):
            while model in self.worker.mounts:
                await asyncio.sleep(0.01)

    async def until_closed(self, host: ModelHost) -> None:
        async with deadline(20, "the engine is closed"):
            while host in self.worker.hosts:
                await asyncio.sleep(0.01)

    async def publish(
        self, model: str, request: str, max_tokens: int = 8, prompt: str = "hello", **fields: Any
    ) -> None:
        await self.client.listen_replies("t-acme", lambda reply: self._take(reply.key, reply.body), request=request)
        body = {
            "type": "completion",
            "id": request,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "ignore_eos": True,
        } | fields
        lane = Lane(model, ServiceClass.DEFAULT, "acme")
        await self.client.publish_prompt(lane, msgspec.json.encode(body), msg_id=request)

    async def answer(self, request: str) -> str:
        """The whole text, once it has ended without an error."""
        async with deadline(20, f"the end of {request}"):
            while not any(frame.terminal for frame in self._frames.get(request, [])):
                await asyncio.sleep(0.01)
        assert self._frames[request][-1].error is None
        return "".join(frame.text for frame in self._frames[request])

    def num_frames(self, request: str) -> int:
        return len(self._frames.get(request, []))

    def _take(self, key: RequestKey, body: bytes) -> None:
        self._frames.setdefault(key.request, []).append(decode_frame(body))


@contextlib.asynccontextmanager
async def running(settings: Settings = SETTINGS) -> AsyncIterator[Scene]:
    scene = Scene(settings)
    yield scene
    await scene.close()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with running() as made:
        yield made


async def test_models_are_served_as_they_come(scene: Scene) -> None:
    await scene.load("one")
    await scene.load("two", context_length=256, max_batch_size=2)
    beat = await scene.until("two", state="ready")

    assert (beat.context_length, beat.num_slots) == (256, 2)
    await scene.publish("two", "r1")
    await scene.publish("one", "r2")
    assert await scene.answer("r1") == await scene.answer("r2") == stub_text("hello", 8)
    scene.meter.read(scene.worker.mounts)
    assert scene.registry.get_sample_value("inferflux_registry_loads_total", {"model": "one", "outcome": "loaded"}) == 1


async def test_what_is_queued_and_what_runs_is_finished_before_a_model_goes(scene: Scene) -> None:
    await scene.load("one", max_batch_size=1)
    await scene.until("one", state="ready")
    for number in range(4):
        await scene.publish("one", f"r{number}", max_tokens=20)
    await scene.amend(amendments.unload, "one")
    await scene.until("one", state="unloading")

    for number in range(4):
        assert await scene.answer(f"r{number}") == stub_text("hello", 20)
    await scene.until_gone("one")
    assert all(host.model != "one" for host in scene.worker.hosts)
    scene.meter.read(scene.worker.mounts)
    assert scene.registry.get_sample_value("inferflux_kv_pages_in_use", {"model": "one"}) is None


async def test_a_model_that_comes_back_while_it_goes_stays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferflux.workers.mount.LINGER_S", 3600.0)
    await scene.load("one")
    await scene.until("one", state="ready")
    (host,) = scene.worker.hosts
    await scene.amend(amendments.unload, "one")
    await scene.until("one", state="unloading")
    await scene.load("one")
    await scene.until("one", state="ready")

    assert scene.worker.mounts["one"].hosts == [host]


async def test_a_model_that_comes_back_goes_on_with_what_was_served(scene: Scene) -> None:
    await scene.load("one")
    await scene.publish("one", "r1")
    await scene.answer("r1")
    fair = scene.worker.mounts["one"].intake.fair
    async with deadline(20, "the service is charged"):
        while not fair.counter("acme"):
            await asyncio.sleep(0.01)
    await scene.amend(amendments.unload, "one")
    await scene.until_gone("one")
    await scene.load("one")
    await scene.publish("one", "r2")
    await scene.answer("r2")

    assert scene.worker.mounts["one"].intake.fair is fair


async def test_another_engine_takes_over_and_the_last_one_finishes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.load("one")
    await scene.until("one", state="ready")
    (last,) = scene.worker.hosts
    await scene.publish("one", "r1", max_tokens=100)
    async with deadline(20, "the answer begins"):
        while not scene.num_frames("r1"):
            await asyncio.sleep(0.01)
    go_on, compute = threading.Event(), StubBackend.run

    def run(self: StubBackend, batch: Sequence[Chunk]) -> list[Sample]:
        assert self is not last._backend or go_on.wait(60)
        return compute(self, batch)

    monkeypatch.setattr(StubBackend, "run", run)
    await scene.load("one", context_length=512)
    await scene.until("one", context_length=512)
    await scene.publish("one", "r2")

    assert await scene.answer("r2") == stub_text("hello", 8)
    assert last in scene.worker.hosts
    go_on.set()
    assert await scene.answer("r1") == stub_text("hello", 100)
    await scene.until_closed(last)


async def test_a_model_that_cannot_be_loaded_leaves_the_others_serving(scene: Scene) -> None:
    await scene.load("good")
    await scene.load("bad", backend="llamacpp", path="/nowhere/bad.gguf")
    beat = await scene.until("bad", state="failed")

    assert "bad.gguf" in (beat.reason or "")
    await scene.publish("good", "r1")
    assert await scene.answer("r1")
    # A change of something else is no reason to try again; `reload` is.
    await scene.load("third")
    await scene.until("third", state="ready")
    name, labels = "inferflux_registry_loads_total", {"model": "bad", "outcome": "failed"}
    assert scene.registry.get_sample_value(name, labels) == 1
    await scene.amend(amendments.reload, "bad")
    async with deadline(20, "another try"):
        while scene.registry.get_sample_value(name, labels) != 2:
            await asyncio.sleep(0.01)


async def test_a_reload_that_fails_leaves_the_last_engine_serving(scene: Scene) -> None:
    await scene.load("one")
    await scene.until("one", state="ready")
    await scene.load("one", backend="llamacpp", path="/nowhere/bad.gguf")
    async with deadline(20, "the failure is told"):
        while (beat := scene.beat("one")) is None or beat.reason is None:
            await asyncio.sleep(0.01)

    assert (beat.state, beat.backend) == ("ready", "stub")
    await scene.publish("one", "r1")
    assert await scene.answer("r1") == stub_text("hello", 8)


async def test_smaller_bounds_need_no_other_engine_and_larger_ones_do(scene: Scene) -> None:
    await scene.load("one")
    await scene.until("one", num_slots=4)
    (host,) = scene.worker.hosts
    await scene.amend(amendments.change, "one", {"max_batch_size": 2, "chunked_prefill_tokens": 64})
    await scene.until("one", num_slots=2)
    assert scene.worker.hosts == [host]
    await scene.amend(amendments.change, "one", {"max_batch_size": None})
    await scene.until("one", num_slots=4)
    assert scene.worker.hosts == [host]

    await scene.amend(amendments.change, "one", {"max_batch_size": 8})
    await scene.until("one", num_slots=8)
    await scene.until_closed(host)


async def test_a_worker_loads_what_is_for_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    # Others serve what is queued for a model that is for another class: nobody lingers for that here.
    monkeypatch.setattr("inferflux.workers.mount.LINGER_S", 3600.0)
    cpu = msgspec.structs.replace(SETTINGS, worker=WorkerSettings(hardware="cpu", drain_timeout_s=3600.0))
    async with running(cpu) as scene:
        await scene.load("large", hardware="gpu")
        await scene.load("small", hardware="cpu")
        await scene.until("small", state="ready")
        assert scene.beat("large") is None

        await scene.amend(amendments.change, "small", {"hardware": "gpu"})
        await scene.until_gone("small")


async def test_a_file_that_is_missing_is_fetched_first(scene: Scene, tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(call: Asked) -> Answer:
        asked.append(call.path)
        return Answer(status=404 if "gone" in call.path else 200, body=b"GGUF and the rest")

    with HttpServer(answer).running() as server:
        path = tmp_path / "models" / "a.gguf"
        await scene.load("a", backend="llamacpp", path=str(path), source=f"{server.url}/a.gguf")
        # What came is no model, but it came.
        assert "a.gguf" in ((await scene.until("a", state="failed")).reason or "")
        assert path.read_bytes() == b"GGUF and the rest"
        await scene.load("b", backend="llamacpp", path=str(tmp_path / "b.gguf"), source=f"{server.url}/gone.gguf")
        assert "404" in ((await scene.until("b", state="failed")).reason or "")
        await scene.amend(amendments.reload, "a")
        async with deadline(20, "another try"):
            while scene.worker.mounts["a"].failure is None:
                await asyncio.sleep(0.01)
    assert asked.count("/a.gguf") == 1


async def test_without_a_registry_the_own_settings_name_the_model() -> None:
    own = msgspec.structs.replace(SETTINGS, model=ModelSettings(id="mine", backend="stub"))
    async with running(own) as scene:
        await scene.until("mine", state="ready")


async def test_prefixes_are_computed_beforehand_and_forgotten_on_demand(scene: Scene) -> None:
    await scene.load("one")
    prefix = WarmPrefix(id="", model="one", tenant="acme", prompt="word " * 100)
    orders = await scene.caches.warm(prefix)
    ids = tuple(each.id for each in orders.warm)
    beat = await scene.until("one", warm=ids)
    assert beat.num_pages_cached > 0
    await scene.publish("one", "r1", prompt="word " * 100 + "and more")
    await scene.answer("r1")
    warm = await scene.until("one", num_running=0)
    assert warm.prefix_hits > 0

    await scene.caches.clear(["one"])
    await scene.until("one", warm=(), num_pages_cached=0)
    await scene.publish("one", "r2", prompt="word " * 100 + "and more")
    await scene.answer("r2")
    assert (await scene.until("one", num_running=0)).prefix_hits == warm.prefix_hits


async def test_conversations_with_a_warm_system_message_start_from_it(scene: Scene) -> None:
    await scene.load("one")
    system = Message(role="system", content="You are brief, kind, and you never make anything up. " * 4)
    orders = await scene.caches.warm(WarmPrefix(id="", model="one", tenant="acme", messages=(system,)))
    await scene.until("one", warm=tuple(each.id for each in orders.warm))
    question = {"role": "user", "content": "What is the sea?"}
    await scene.publish("one", "r1", type="chat", messages=[msgspec.to_builtins(system), question])
    await scene.answer("r1")

    beat = await scene.until("one", num_running=0)
    assert beat.prefix_hits > len(system.content) // 2


async def test_an_engine_that_comes_later_computes_them_too(scene: Scene) -> None:
    messages = (WarmPrefix(id="", model="one", tenant="acme", prompt="word " * 50),)
    orders = await scene.caches.warm(messages[0])
    await scene.load("one")
    await scene.until("one", warm=tuple(each.id for each in orders.warm))
    await scene.amend(amendments.reload, "one")
    (first,) = scene.worker.hosts
    await scene.until_closed(first)
    assert (await scene.until("one", warm=tuple(each.id for each in orders.warm))).num_pages_cached > 0
