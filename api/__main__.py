"""`python -m inferflux.api [--config FILE] [--set section.key=value]`: one API process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from types import FrameType

import uvicorn
import uvloop
from litestar import Litestar

from inferflux.broker.credentials import ROLE_API, resolve
from inferflux.broker.errors import ConfigError, InferFluxError
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.stamp import Stamper
from inferflux.config import logs
from inferflux.config.audit import Audit
from inferflux.config.lifeline import parent_gone, supervised_name
from inferflux.config.load import load_for_process
from inferflux.config.settings import ServerSettings, Settings
from inferflux.registry.control import Control
from inferflux.registry.models import Models, load_models
from inferflux.registry.passphrase import PASSPHRASE
from inferflux.registry.sealing import open_store
from inferflux.registry.tenants import Tenants

from .app import create_app
from .connection import BoundedProtocol
from .dispatch import Dispatcher

log = logs.get_logger("api")

KEEP_ALIVE_S = 30
CLOSE_S = 3


class Server(uvicorn.Server):
    """A uvicorn server whose signals drain first: it goes on answering, readiness included, until all streams have
    ended or the drain timeout has passed. A second signal skips the wait."""

    def __init__(self, config: uvicorn.Config, dispatcher: Dispatcher, settings: ServerSettings) -> None:
        super().__init__(config)
        self._dispatcher = dispatcher
        self._settings = settings
        self._draining: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self.stop)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises InferFluxError when the application could not start, or not end in order."""
        await super().serve(sockets)
        if self.lifespan.should_exit:
            raise InferFluxError("the API failed to start or to stop; the log says why")

    def stop(self) -> None:
        """Begin to drain; the second time, stop now."""
        if self._draining is None:
            log.info("draining", num_streams=self._dispatcher.num_open)
            self._draining = asyncio.create_task(self._drain())
        else:
            self.should_exit = True

    async def _drain(self) -> None:
        self._dispatcher.give_notice()
        # A connection that is kept leads a client back here, past any balancer of connections.
        self._let_go(busy=True)
        await asyncio.sleep(self._settings.drain_notice_s)
        self._let_go(busy=False)
        await self._dispatcher.drain(self._settings.drain_timeout_s)
        self.should_exit = True

    def _let_go(self, *, busy: bool) -> None:
        """Close connections: busy ones with the end of their answers, idle ones now."""
        for connection in list(self.server_state.connections):
            cycle = connection.cycle  # type: ignore[union-attr]
            if busy == (cycle is not None and not cycle.response_complete):
                connection.shutdown()


def main() -> None:
    """Exit code 2 for what a person must fix, 1 for a broker that cannot be reached and other failures."""
    try:
        settings = load_for_process(sys.argv[1:], os.environ, "python -m inferflux.api").settings
        logs.setup(settings.logging, supervised_name(os.environ) or "api")
        uvloop.run(serve(settings))
    except ConfigError as error:
        sys.exit(_fail(error, 2))
    except InferFluxError as error:
        sys.exit(_fail(error, 1))


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or the supervisor's end, then drain."""
    models = load_models(settings)
    tenants = Tenants.from_settings(settings)
    _announce(models, tenants)
    connection = resolve(settings.broker, ROLE_API)
    if connection.stamp_secret is None:
        raise ConfigError("an API needs broker.stamp_secret; all APIs and workers must have the same")
    broker = await JetStreamBroker.connect(settings, ROLE_API, "api", connection=connection)
    try:
        store = await open_store(broker, os.environ.get(PASSPHRASE), may_create=True)
        control = Control(settings, store, tenants, Audit.of_process(settings.logging, "api"))
        app = create_app(settings, broker, Stamper(connection.stamp_secret), models, control)
        server = Server(_uvicorn(app, settings.server), app.state.parts.dispatcher, settings.server)
        polling = asyncio.create_task(app.state.parts.poller.run())
        lifeline = asyncio.create_task(parent_gone())
        lifeline.add_done_callback(lambda task: None if task.cancelled() else server.stop())
        try:
            await server.serve()
        finally:
            for task in (polling, lifeline):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
    finally:
        await broker.close()


def _uvicorn(app: Litestar, server: ServerSettings) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        host=server.host,
        port=server.port,
        ssl_certfile=server.tls_cert,
        ssl_keyfile=server.tls_key,
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_S,
    )
    try:
        config.load()
    except OSError as error:
        raise ConfigError(f"server.tls_cert, server.tls_key: cannot be used: {error}") from error
    return config


def _announce(models: Models, tenants: Tenants) -> None:
    for entry in models:
        if entry.stub_reason is not None:
            log.warning("the stub answers for this model: it is not real", model=entry.id, reason=entry.stub_reason)
    if not tenants.num_keys:
        log.warning("auth.api_keys is empty: only keys that were made before, and tokens of an issuer, are taken")


def _fail(error: Exception, code: int) -> int:
    log.error(str(error))
    return code


if __name__ == "__main__":
    main()
