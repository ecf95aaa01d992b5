"""`python -m inferflux.workers [--config FILE] [--set section.key=value]`: one worker process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

import uvloop
from prometheus_client import CollectorRegistry

from inferflux.broker.credentials import ROLE_WORKER, Connection, resolve
from inferflux.broker.errors import BrokerError, ConfigError
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.stamp import Stamper
from inferflux.broker.trace import make_tracer
from inferflux.config import logs
from inferflux.config.audit import Audit
from inferflux.config.lifeline import parent_gone, supervised_name
from inferflux.config.load import load_for_process
from inferflux.config.metrics import PolicyMetrics, WorkerMetrics
from inferflux.config.settings import Settings
from inferflux.registry.audit import Anchorage, Anchors
from inferflux.registry.control import Control
from inferflux.registry.passphrase import PASSPHRASE
from inferflux.registry.sealing import open_store
from inferflux.registry.tenants import Tenants

from .cache_keeper import CacheKeeper
from .follow import follow
from .heartbeat import Heartbeat
from .meter import Meter
from .probe import Probe
from .ranks import read_ranks
from .reader import PromptReader
from .registrar import Registrar
from .seal import Sealer
from .worker import Worker

log = logs.get_logger("worker")

EXIT_HUNG = 70


def main() -> None:
    """Exit code 2 for what a person must fix, 1 for a broker that cannot be reached, 70 for an engine that hangs."""
    try:
        settings = load_for_process(sys.argv[1:], os.environ, "python -m inferflux.workers").settings
        ranks = read_ranks(os.environ)
        logs.setup(settings.logging, supervised_name(os.environ) or "worker")
        if ranks is not None and ranks.follows:
            sys.exit(follow(ranks))
        if uvloop.run(serve(settings)):
            # The engine's thread never returns, and native code may keep even a daemon thread's process alive.
            os._exit(EXIT_HUNG)
    except ConfigError as error:
        sys.exit(_fail(error, 2))
    except BrokerError as error:
        sys.exit(_fail(error, 1))


async def serve(settings: Settings) -> bool:
    """Serve until SIGTERM, SIGINT or the supervisor's end, then drain. True when it ended because an engine hangs."""
    connection = resolve(settings.broker, ROLE_WORKER)
    tenants = Tenants.from_settings(settings)
    metrics = WorkerMetrics(registry := CollectorRegistry())
    tracer = make_tracer(settings.tracing, "worker")
    broker = await JetStreamBroker.connect(settings, ROLE_WORKER, "worker", connection=connection)
    try:
        meter = Meter(metrics, tracer)
        store = await open_store(broker, os.environ.get(PASSPHRASE), may_create=False)
        control = Control(settings, store, tenants, Audit.of_process(settings.logging, "worker"))
        policy = PolicyMetrics(registry)
        policy.policy_refused.set_function(lambda: len(store.refused))
        control.guard.on_hit = policy.count
        anchorage = Anchorage(control.audit, Anchors(broker), policy)
        worker = Worker(settings, broker, (), control, _reader(connection, tenants), meter)
        registrar = Registrar(settings, control, worker, metrics)
        keeper = CacheKeeper(control, worker)
        with Probe(worker, broker, registry).serving(settings.worker.metrics_host, settings.worker.metrics_port):
            anchorage.start()
            try:
                await _run(worker, registrar, Heartbeat(worker, broker, meter, settings.worker.heartbeat_s))
            finally:
                await keeper.close()
                await anchorage.close()
        return bool(worker.hung)
    finally:
        await broker.close()
        if tracer is not None:
            await asyncio.to_thread(tracer.close)


async def _run(worker: Worker, registrar: Registrar, heartbeat: Heartbeat) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    lifeline = asyncio.create_task(parent_gone())
    lifeline.add_done_callback(lambda _: worker.stop())
    beating, registering = asyncio.create_task(heartbeat.run()), asyncio.create_task(registrar.run())
    try:
        await worker.run()
    finally:
        for task in (registering, beating, lifeline):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _reader(connection: Connection, tenants: Tenants) -> PromptReader:
    if connection.stamp_secret is None or connection.seal_secret is None:
        raise ConfigError("a worker needs broker.stamp_secret and broker.seal_secret; all workers must have the same")
    return PromptReader(Stamper(connection.stamp_secret), Sealer(connection.seal_secret), tenants)


def _fail(error: Exception, code: int) -> int:
    log.error(str(error))
    return code


if __name__ == "__main__":
    main()
