from __future__ import annotations

import asyncio
import contextlib
from importlib.metadata import PackageNotFoundError

import pytest
from prometheus_client import CollectorRegistry

from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import BUCKET_WORKERS, encode_token
from inferflux.broker.wire.fleet import WorkerBeat, decode_beat
from inferflux.config import version
from inferflux.config.metrics import WorkerMetrics
from inferflux.config.settings import Settings
from inferflux.registry.control import Control
from inferflux.registry.store import PolicyStore
from inferflux.registry.tenants import Tenants
from inferflux.workers.heartbeat import Heartbeat
from inferflux.workers.meter import Meter
from inferflux.workers.reader import PromptReader
from inferflux.workers.seal import Sealer
from inferflux.workers.worker import Worker

INTERVAL_S = 0.01


class Scene:
    """A worker without models, and its heartbeat."""

    def __init__(self) -> None:
        settings = Settings()
        self.broker = MemoryBroker(MemoryHub())
        tenants = Tenants.from_settings(settings)
        reader = PromptReader(Stamper(b"the secret of the stamps"), Sealer(b"the secret of the seals"), tenants)
        meter = Meter(WorkerMetrics(CollectorRegistry()))
        self.worker = Worker(
            settings, self.broker, [], Control(settings, PolicyStore(self.broker), tenants), reader, meter
        )
        self.heartbeat = Heartbeat(self.worker, self.broker, meter, INTERVAL_S)

    async def first_beat(self) -> WorkerBeat:
        """Run until something has been told; then withdraw it."""
        bucket = await self.broker.bucket(BUCKET_WORKERS)
        key = encode_token(self.worker.id)
        task = asyncio.create_task(self.heartbeat.run())
        async with asyncio.timeout(30):
            while (entry := await bucket.get(key)) is None:
                await asyncio.sleep(INTERVAL_S)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert await bucket.get(key) is None
        assert entry.value is not None
        return decode_beat(entry.value)


async def test_heart_goes_on_beating_after_a_bug() -> None:
    scene = Scene()
    beat, num_calls = scene.heartbeat.beat, 0

    def broken_once() -> WorkerBeat:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            raise RuntimeError("a bug")
        return beat()

    scene.heartbeat.beat = broken_once  # type: ignore[method-assign]

    assert (await scene.first_beat()).worker == scene.worker.id
    assert num_calls >= 2


async def test_worker_that_is_not_installed_beats_without_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(version, "version", missing)
    # Whoever asked before in this process, and whoever will ask, is told the same for ever.
    version.package_version.cache_clear()
    try:
        assert (await Scene().first_beat()).version == ""
    finally:
        version.package_version.cache_clear()
