"""The registrar: has this worker load, change and unload models as the registry says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from inferflux.broker.errors import ConfigError
from inferflux.broker.wire.fleet import Hardware
from inferflux.broker.wire.policies import ModelRegistry
from inferflux.config.logs import get_logger
from inferflux.config.metrics import WorkerMetrics
from inferflux.config.settings import RuntimeSettings, SchedulerSettings, Settings
from inferflux.registry.control import Control
from inferflux.registry.download import Download, DownloadFailed, alone, url_of
from inferflux.registry.model_store import models_document
from inferflux.registry.models import BOUNDS, ModelEntry, entries_of, own_entry

from .backends.opening import open_backend
from .host import ModelHost
from .mount import Mount
from .worker import Worker

log = get_logger("worker.registrar")


class Tenure(msgspec.Struct):
    """What the registry wants of one model here, and what was made of it: `opened` is the entry that the engine was
    started from, None before one was. `changed` is set when there is something to do."""

    wanted: ModelEntry | None
    changed: asyncio.Event
    opened: ModelEntry | None = None
    listed: bool = True


class Registrar:
    """Models are looked after side by side: one that loads or fails keeps no other waiting.

    Until there is a registry, a worker serves the model that its own settings name.
    """

    def __init__(self, settings: Settings, control: Control, worker: Worker, metrics: WorkerMetrics) -> None:
        self._settings = settings
        self._control = control
        self._worker = worker
        self._metrics = metrics
        self._hardware = worker.hardware
        self._registry: ModelRegistry | None = None
        self._tenures: dict[str, Tenure] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        control.registry.follow(models_document(control.store), self._apply)

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            await self._control.registry.listed.wait()
            if self._registry is None:
                own = own_entry(self._settings)
                self._want([] if own is None else [own])
            await asyncio.Event().wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _apply(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._want(entries_of(registry))

    def _want(self, entries: Iterable[ModelEntry]) -> None:
        entries = list(entries)
        mine = {entry.id: entry for entry in entries if serves(self._hardware, entry)}
        for model in mine.keys() - self._tenures.keys():
            tenure = self._tenures[model] = Tenure(mine[model], asyncio.Event())
            task = asyncio.create_task(self._look_after(model, tenure), name=f"model {model}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        names = {entry.id for entry in entries}
        for model, tenure in self._tenures.items():
            tenure.wanted, tenure.listed = mine.get(model), model in names
            tenure.changed.set()

    async def _look_after(self, model: str, tenure: Tenure) -> None:
        """From a model's first mention until it is gone from here."""
        mount = self._worker.mount(model)
        while True:
            tenure.changed.clear()
            try:
                if tenure.wanted is not None:
                    await self._bring(mount, tenure, tenure.wanted)
                elif await self._take_away(mount, tenure):
                    return
                else:
                    continue
            except Exception as error:
                log.error("model not looked after", error=error, model=model)
                mount.fail("", str(error), "")
            await tenure.changed.wait()

    async def _bring(self, mount: Mount, tenure: Tenure, entry: ModelEntry) -> None:
        if self._worker.draining:
            return
        mount.unloading = False
        if mount.host is not None and mount.host.digest == entry.digest:
            mount.failure = None
            return
        if mount.failure is not None and mount.failure.digest == entry.digest:
            return
        if mount.host is not None and tenure.opened is not None and self._within(entry, tenure.opened):
            mount.failure = None
            mount.host.configure(self._runtime(entry).scheduler, entry.digest)
            log.info("model configured", model=entry.id)
            return
        started_s = time.monotonic()
        try:
            await self._fetch(mount, entry)
            host = self._open(entry)
        except (ConfigError, DownloadFailed) as error:
            mount.fail(entry.backend, str(error), entry.digest)
            loaded = False
        else:
            loaded = await mount.put(host)
        self._metrics.registry_loads.labels(entry.id, "loaded" if loaded else "failed").inc()
        if loaded:
            tenure.opened = entry
            self._metrics.registry_load_time.labels(entry.id).observe(time.monotonic() - started_s)

    async def _take_away(self, mount: Mount, tenure: Tenure) -> bool:
        """False when the model is wanted again before it was gone."""
        mount.unloading = True
        log.info("model unloads", model=mount.model)
        if not tenure.listed:
            # Nobody else serves what is queued for a model that is gone from the registry.
            await mount.run_dry(tenure.changed, self._settings.worker.drain_timeout_s)
            if tenure.wanted is not None:
                return False
        await mount.finish()
        self._worker.unmount(mount)
        self._metrics.registry_loads.labels(mount.model, "unloaded").inc()
        log.info("model unloaded", model=mount.model)
        wanted = tenure.wanted
        del self._tenures[mount.model]
        if wanted is not None and self._registry is not None:
            self._want(entries_of(self._registry))
        return True

    async def _fetch(self, mount: Mount, entry: ModelEntry) -> None:
        """Bring the model's file here where it is missing. Raises DownloadFailed."""
        path, url = entry.path, None if entry.source is None else url_of(entry.source)
        if path is None or url is None or path.exists():
            return

        def progressed(num_here: int, num_all: int | None) -> None:
            mount.fetched = num_here / num_all if num_all else 0.0

        def fetch() -> None:
            with alone(path):
                if not path.exists():
                    Download(path, progress=progressed).from_url(url)

        log.info("model is fetched", model=entry.id, source=entry.source, path=str(path))
        mount.failure, mount.fetched = None, 0.0
        await asyncio.to_thread(fetch)

    def _within(self, entry: ModelEntry, opened: ModelEntry) -> bool:
        """Whether the engine that was opened for one entry can serve the other one by other bounds alone."""
        wanted, started = self._runtime(entry), self._runtime(opened)
        return (
            (entry.path, entry.backend, entry.num_reloads) == (opened.path, opened.backend, opened.num_reloads)
            and replace(wanted, scheduler=started.scheduler) == started
            and wanted.scheduler.max_batch_size <= started.scheduler.max_batch_size
            and wanted.scheduler.max_batch_tokens <= started.scheduler.max_batch_tokens
        )

    def _open(self, entry: ModelEntry) -> ModelHost:
        runtime = self._runtime(entry)
        backend = open_backend(entry.backend, str(entry.path) if entry.path else None, runtime)
        return ModelHost(entry.id, backend, runtime, self._metrics, self._settings.fairness, entry.digest)

    def _runtime(self, entry: ModelEntry) -> RuntimeSettings:
        """This worker's settings under the model's own."""
        runtime = self._settings.runtime
        if entry.context_length is not None:
            runtime = replace(
                runtime,
                llamacpp=replace(runtime.llamacpp, context_length=entry.context_length),
                torch=replace(runtime.torch, context_length=entry.context_length),
                stub=replace(runtime.stub, context_length=entry.context_length),
            )
        return replace(runtime, scheduler=_bounds(entry, runtime.scheduler))


def serves(hardware: Hardware, entry: ModelEntry) -> bool:
    """Whether a worker of this class loads the model."""
    return entry.hardware in ("any", hardware)


def _bounds(entry: ModelEntry, scheduler: SchedulerSettings) -> SchedulerSettings:
    given = {name: getattr(entry, name) for name in BOUNDS}
    return replace(scheduler, **{name: value for name, value in given.items() if value is not None})
