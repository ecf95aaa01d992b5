"""`inferctl serve`, `api` and `worker`: processes under one supervisor, with one log."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .errors import CommandFailed
from .options import Config, Set

if TYPE_CHECKING:
    from inferflux.config.settings import Settings

    from .launch import Launch
    from .supervisor import Supervisor

Parts = Literal["serve", "api", "worker"]

Host = Annotated[str | None, typer.Option("--host", help="Address to listen on (server.host).")]
Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on (server.port); 0 picks a free one.")
]
ModelFile = Annotated[Path | None, typer.Option("--model", help="Serve this model file too (model.path).")]
ApiReplicas = Annotated[
    int, typer.Option("--api-replicas", min=1, help="API processes; each next one listens on the next port.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Worker processes.")]
WorldSize = Annotated[
    int, typer.Option("--world-size", min=1, help="Ranks of each worker, which share a model of the torch backend.")
]


def serve(
    config: Config = None,
    model: ModelFile = None,
    host: Host = None,
    port: Port = None,
    api_replicas: ApiReplicas = 1,
    workers: Workers = 1,
    set_: Set = None,
) -> None:
    """Serve models: broker, API and workers in one command. Ctrl-C drains, a second one kills."""
    flags = {"server.host": host, "server.port": port, "model.path": model}
    _run("serve", config, set_, flags, num_apis=api_replicas, num_workers=workers)


def api(
    config: Config = None,
    host: Host = None,
    port: Port = None,
    api_replicas: ApiReplicas = 1,
    set_: Set = None,
) -> None:
    """Run API replicas only, against the broker that the settings name."""
    _run("api", config, set_, {"server.host": host, "server.port": port}, num_apis=api_replicas, num_workers=0)


def worker(
    config: Config = None,
    model: ModelFile = None,
    workers: Workers = 1,
    world_size: WorldSize = 1,
    set_: Set = None,
) -> None:
    """Run workers only, against the broker that the settings name."""
    flags = {"model.path": model}
    _run("worker", config, set_, flags, num_apis=0, num_workers=workers, world_size=world_size)


def _run(
    parts: Parts,
    config: Path | None,
    assignments: list[str] | None,
    flags: Mapping[str, object],
    *,
    num_apis: int,
    num_workers: int,
    world_size: int = 1,
) -> None:
    from inferflux.config import load, logs

    from .launch import Launch, check_port, free_port

    given = {path: str(value) for path, value in flags.items() if value is not None}
    path = load.find(config)
    overrides = load.parse_assignments(assignments or []) | given
    settings = load.load(path, os.environ, overrides).settings
    logs.setup(settings.logging, "serve")
    port = settings.server.port
    if num_apis:
        port = port or free_port(settings.server.host)
        for number in range(num_apis):
            check_port(settings.server.host, port + number, "--port")
    launch = Launch(
        settings=settings,
        config=path,
        flags=overrides,
        log_format=logs.resolve_format(settings.logging.format, sys.stderr),
        coloured=logs.wants_colour(sys.stderr, os.environ),
        num_apis=num_apis,
        num_workers=num_workers,
        world_size=world_size,
        port=port,
    )
    if num_apis:
        warn(settings)
    asyncio.run(_supervise(launch, embedded=parts == "serve" and settings.broker.url is None))


def warn(settings: Settings) -> None:
    """Log what is wrong with the keys of a server that is about to listen."""
    from inferflux.config.logs import get_logger

    from .launch import DEV_KEY, is_loopback

    log = get_logger("serve")
    dev = any(key.key == DEV_KEY for key in settings.auth.api_keys)
    if dev and not is_loopback(settings.server.host):
        log.warning(
            "everybody knows the key dev-key-123, and this server listens beyond this machine: "
            "put a key of your own into auth.api_keys",
            host=settings.server.host,
        )
    if not settings.auth.api_keys:
        log.warning("auth.api_keys is empty: only keys that were made before, and tokens of an issuer, are taken")


async def _supervise(launch: Launch, *, embedded: bool) -> None:
    from inferflux.broker.embedded import EmbeddedServer
    from inferflux.config.logs import get_logger

    from .merge import LineMerger
    from .supervisor import Supervisor, install_signal_handlers

    log = get_logger("serve")
    stop, kill = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            log.warning("killing")
            kill.set()
        else:
            log.info("draining; once more kills")
            stop.set()

    install_signal_handlers(on_signal)
    merger = LineMerger(sys.stderr, launch.log_format, coloured=launch.coloured)
    supervisor = Supervisor(launch.children(), merger)
    if not sys.stdin.isatty():
        # From a terminal it means that the terminal is gone, and ends us.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, supervisor.hang_up)
    if not embedded:
        await _run_until(supervisor, _announce(launch, None), stop, kill)
        return
    server = EmbeddedServer(launch.settings)
    await server.start()
    try:
        await _run_until(supervisor, _announce(launch, server.url), stop, kill)
    finally:
        await server.stop()
        log.info("stopped")


async def _announce(launch: Launch, nats_url: str | None) -> None:
    if launch.num_apis == 0:
        return
    from .panel import print_panel
    from .readiness import wait_ready

    print_panel(launch, await wait_ready(launch), nats_url)


async def _run_until(
    supervisor: Supervisor, announcement: Coroutine[None, None, None], stop: asyncio.Event, kill: asyncio.Event
) -> None:
    announcing = asyncio.create_task(announcement)
    try:
        await supervisor.run(stop, kill)
    finally:
        announcing.cancel()
        await asyncio.gather(announcing, return_exceptions=True)
    if kill.is_set():
        raise CommandFailed("killed before everything had drained")
