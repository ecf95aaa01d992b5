"""The worker's own HTTP: /metrics for Prometheus, /livez and /readyz for whoever restarts and routes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
from prometheus_client import CollectorRegistry, make_wsgi_app

from inferflux.broker.broker import Broker
from inferflux.broker.errors import ConfigError
from inferflux.config.logs import get_logger

from .worker import Worker

log = get_logger("worker")


class Probe:
    """Alive while no engine hangs; ready while it could take a prompt: a model is loaded, NATS is there, no drain."""

    def __init__(self, worker: Worker, broker: Broker, registry: CollectorRegistry) -> None:
        self._worker = worker
        self._broker = broker
        self._metrics = make_wsgi_app(registry)

    @property
    def live(self) -> bool:
        return not self._worker.hung

    @property
    def checks(self) -> dict[str, bool]:
        """Every condition of being ready."""
        return {
            "broker": self._broker.connected,
            "model": any(host.state == "ready" for host in self._worker.hosts),
            "engine": self.live,
            "accepting": not self._worker.draining,
        }

    @contextmanager
    def serving(self, host: str, port: int) -> Iterator[int]:
        """Serve on a thread of its own until the block ends; yields the port. Raises ConfigError when it is taken."""
        try:
            server = make_server(host, port, self._answer, _Server, _Handler)
        except OSError as error:
            raise ConfigError(f"worker.metrics_port: {host}:{port} cannot be used: {error.strerror}") from error
        thread = threading.Thread(target=server.serve_forever, name="probe", daemon=True)
        thread.start()
        log.info("metrics served", url=f"http://{host}:{server.server_port}/metrics")
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                exposition: Iterable[bytes] = self._metrics(environ, start)
                return exposition
            case "/livez":
                good, body = self.live, {"live": self.live}
            case "/readyz":
                good, body = all(self.checks.values()), self.checks
            case _:
                start("404 Not Found", [("Content-Type", "application/json")])
                return [b'{"error":"this worker serves /metrics, /livez and /readyz"}']
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        start(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
        return [msgspec.json.encode(body)]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A probe every few seconds is no event."""
