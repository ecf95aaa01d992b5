"""Edits of the registry file on their way into KV, with one replica and with two."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import BUCKET_REGISTRY, KEY_MODELS
from inferflux.broker.wire.policies import ModelRecord
from inferflux.config.metrics import ApiMetrics
from inferflux.config.settings import ModelSettings, RegistrySettings, Settings
from inferflux.registry import amendments
from inferflux.registry.model_store import ModelStore
from inferflux.registry.poller import RegistryPoller
from inferflux.registry.store import PolicyStore


class Replica:
    """One poller over a file of its own."""

    def __init__(self, scene: Scene, name: str, model: ModelSettings | None = None) -> None:
        self.file = scene.folder / name / "registry.yaml"
        self.file.parent.mkdir()
        self.registry = CollectorRegistry()
        settings = Settings(registry=RegistrySettings(path=str(self.file)), model=model or ModelSettings())
        self.poller = RegistryPoller(settings, scene.store, name, scene.is_there, ApiMetrics(self.registry))

    def write(self, *models: str) -> None:
        self.file.write_text(f"models: [{', '.join(models)}]")

    def count(self, event: str) -> float:
        return self.registry.get_sample_value("inferflux_registry_events_total", {"event": event}) or 0.0


class Scene:
    """A store that replicas share, and who of them lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = MemoryBroker(MemoryHub())
        self.store = ModelStore(PolicyStore(self.broker))
        self.there = {"one", "two"}

    async def is_there(self, replica: str) -> bool:
        return replica in self.there

    async def models(self) -> list[str]:
        registry = await self.store.read()
        return [each.id for each in (*registry.listed, *registry.loaded)]

    async def revision(self) -> int:
        entry = await (await self.broker.bucket(BUCKET_REGISTRY)).get(KEY_MODELS)
        return 0 if entry is None else entry.revision


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


async def test_an_edit_comes_into_force_and_the_same_file_again_changes_nothing(scene: Scene) -> None:
    one = Replica(scene, "one")
    one.write("{id: a, backend: stub}")
    assert (await one.poller.poll()).applied
    revision = await scene.revision()
    one.file.write_text("# the same, said otherwise\nmodels:\n  - backend: stub\n    id: a\n")
    assert (await one.poller.poll()).applied

    assert await scene.revision() == revision
    one.write("{id: a, backend: stub}", "{id: b, backend: stub}")
    await one.poller.poll()
    assert await scene.models() == ["a", "b"]
    assert one.count("file_applied") == 2


async def test_a_bad_edit_changes_nothing_and_is_told_once(scene: Scene) -> None:
    one = Replica(scene, "one")
    one.write("{id: a, backend: stub}")
    await one.poller.poll()
    one.write("{id: a, backnd: stub}")
    for _ in range(3):
        report = await one.poller.poll()

    assert "backnd" in (report.error or "")
    assert not report.applied
    assert await scene.models() == ["a"]
    assert one.count("file_refused") == 1
    assert one.registry.get_sample_value("inferflux_registry_file_applied") == 0
    one.write("{id: a, backend: stub}")
    assert (await one.poller.poll()).applied


async def test_a_file_does_not_wipe_what_operators_loaded(scene: Scene) -> None:
    one = Replica(scene, "one")
    one.write("{id: a, backend: stub}")
    await one.poller.poll()
    await scene.store.amend(lambda now: amendments.load(now, ModelRecord(id="mine", backend="stub"), default=False))
    one.write("{id: mine, backend: stub}")
    assert "'mine' was loaded by an operator" in ((await one.poller.poll()).error or "")
    assert await scene.models() == ["a", "mine"]

    one.write("{id: c, backend: stub}")
    await one.poller.poll()
    assert await scene.models() == ["c", "mine"]


async def test_two_replicas_with_different_files_say_so_and_take_nothing_back(scene: Scene) -> None:
    one, two = Replica(scene, "one"), Replica(scene, "two")
    one.write("{id: a, backend: stub}")
    two.write("{id: b, backend: stub}")
    await one.poller.poll()
    for _ in range(3):
        assert (await one.poller.poll()).applied
        report = await two.poller.poll()

    assert not report.applied
    assert report.conflict is not None
    assert report.conflict.startswith("one (")
    assert await scene.models() == ["a"]
    assert (one.count("file_conflict"), two.count("file_conflict")) == (0, 1)


async def test_an_edit_wins_over_another_replicas_file(scene: Scene) -> None:
    one, two = Replica(scene, "one"), Replica(scene, "two")
    one.write("{id: a, backend: stub}")
    two.write("{id: a, backend: stub}")
    assert (await one.poller.poll()).applied
    assert (await two.poller.poll()).applied
    two.write("{id: b, backend: stub}")
    assert (await two.poller.poll()).applied
    assert (await one.poller.poll()).conflict is not None
    assert await scene.models() == ["b"]


async def test_the_file_of_a_replica_that_is_gone_gives_way(scene: Scene) -> None:
    one, two = Replica(scene, "one"), Replica(scene, "two")
    one.write("{id: a, backend: stub}")
    two.write("{id: b, backend: stub}")
    await one.poller.poll()
    assert (await two.poller.poll()).conflict is not None
    scene.there.remove("one")
    assert (await two.poller.poll()).applied
    assert await scene.models() == ["b"]


async def test_the_model_of_the_settings_is_the_files_default(scene: Scene) -> None:
    one = Replica(scene, "one", ModelSettings(id="chosen", backend="stub"))
    one.write("{id: a, backend: stub, default: true}")
    await one.poller.poll()

    assert (await scene.store.read()).listed_default == "chosen"
    assert await scene.models() == ["chosen", "a"]


async def test_without_a_broker_nothing_is_said_of_the_file(scene: Scene) -> None:
    one = Replica(scene, "one")
    await scene.broker.close()
    with pytest.raises(BrokerUnavailable):
        await one.poller.poll()
