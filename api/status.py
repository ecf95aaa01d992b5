"""The status of this replica: its checks, its report, and the metrics that are looked up when somebody asks."""

from __future__ import annotations

import os
import time

import msgspec
import psutil
from prometheus_client import CollectorRegistry

from inferflux.broker.broker import Broker
from inferflux.broker.errors import BrokerError
from inferflux.config.logs import get_logger
from inferflux.config.metrics import ApiMetrics, FleetMetrics, PolicyMetrics
from inferflux.config.version import package_version
from inferflux.registry.deadletters import DeadLetters
from inferflux.registry.fleet import Fleet
from inferflux.registry.store import PolicyStore

from .dispatch import Dispatcher
from .pressure import Pressure

log = get_logger("api")

READY = "ready"


class StatusAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One API process. `started` is Unix time."""

    replica: str
    pid: int
    version: str
    started: float
    rss_bytes: int
    num_streams: int
    tape_fill: float
    draining: bool
    checks: dict[str, bool]


class Metrics:
    """The registry behind /metrics and everything in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.api = ApiMetrics(self.registry)
        self.fleet = FleetMetrics(self.registry)
        self.policy = PolicyMetrics(self.registry)


class Status:
    """Reads everything where it is kept."""

    def __init__(
        self,
        broker: Broker,
        fleet: Fleet,
        dispatcher: Dispatcher,
        pressure: Pressure,
        metrics: Metrics,
        store: PolicyStore,
    ) -> None:
        self.registry = metrics.registry
        self._broker = broker
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._pressure = pressure
        self._metrics = metrics
        self._store = store
        metrics.policy.policy_refused.set_function(lambda: len(store.refused))
        self._dead_letters = DeadLetters(broker)
        self._started = time.time()

    @property
    def replica(self) -> str:
        """Its name, another one after each start."""
        return self._dispatcher.replica

    def checks(self) -> dict[str, bool]:
        """What must hold for new requests to be accepted."""
        return {
            "broker_connected": self._broker.connected,
            "streams_answer": self._pressure.answering,
            "not_draining": not self._dispatcher.draining,
        }

    def notes(self) -> dict[str, bool]:
        """What an operator wants to know, and new requests can wait for."""
        models = [model for worker in self._fleet.workers() if not worker.draining for model in worker.models]
        return {"worker_ready": any(model.state == READY for model in models), "policy_intact": not self._store.refused}

    def report(self) -> StatusAnswer:
        return StatusAnswer(
            replica=self.replica,
            pid=os.getpid(),
            version=package_version(),
            started=self._started,
            rss_bytes=psutil.Process().memory_info().rss,
            num_streams=self._dispatcher.num_open,
            tape_fill=self._pressure.tape_fill,
            draining=self._dispatcher.draining,
            checks=self.checks(),
        )

    async def refresh_metrics(self) -> None:
        """Set the gauges of queues, dead letters and workers; without a broker those of the queues are absent."""
        api = self._metrics.api
        api.tape_fill.set(self._pressure.tape_fill)
        api.queue_depth.clear()
        try:
            for lane, depth in (await self._broker.backlog()).items():
                api.queue_depth.labels(lane.model, lane.service_class.value, lane.tenant).set(depth)
            api.dead_letters.set(len(await self._dead_letters.ids()))
        except BrokerError as error:
            log.warning("queues not counted", reason=str(error))
        self._set_fleet()

    def _set_fleet(self) -> None:
        gauges = self._metrics.fleet
        workers = self._metrics.api.workers
        for gauge in (workers, *vars(gauges).values()):
            gauge.clear()
        for worker in self._fleet.workers():
            gauges.rss_bytes.labels(worker.worker).set(worker.rss_bytes)
            for model in worker.models:
                name = (worker.worker, model.id)
                gauges.num_requests_running.labels(*name).set(model.num_running)
                gauges.num_requests_waiting.labels(*name).set(model.num_waiting)
                gauges.num_free_slots.labels(*name).set(model.num_free_slots)
                gauges.kv_pages.labels(*name).set(model.num_pages)
                gauges.kv_pages_in_use.labels(*name).set(model.num_pages_used)
                gauges.kv_cache_usage.labels(*name).set(model.num_pages_used / max(1, model.num_pages))
                gauges.tokens_per_s.labels(*name).set(model.tokens_per_s)
                if model.state == READY and not worker.draining:
                    workers.labels(model.id).inc()
