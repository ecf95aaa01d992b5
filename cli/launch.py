"""What `inferctl serve` starts, and the addresses it will be found at."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from inferflux.config.settings import Settings
from inferflux.workers.backends.cores import num_physical_cores
from inferflux.workers.ranks import WORLD_SIZE

from .errors import CommandFailed
from .supervisor import ChildSpec

DEV_KEY = "dev-key-123"

_RANK_API = 0
_RANK_WORKER = 1
# A process has its own drain timeout; only one that overruns it is killed.
_SLACK_S = 5.0


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """A set of processes over one settings file. API replica `i` listens on the port after the one before it."""

    settings: Settings
    config: Path
    flags: Mapping[str, str]
    log_format: Literal["text", "json"]
    coloured: bool = False
    num_apis: int = 1
    num_workers: int = 1
    world_size: int = 1
    port: int = 8080

    def children(self) -> list[ChildSpec]:
        """APIs drain before workers: they wait for answers that workers still give."""
        settings = self.settings
        apis = [
            ChildSpec(
                name=_numbered("api", number, self.num_apis),
                argv=self._argv("inferflux.api", {"server.port": str(port)}),
                rank=_RANK_API,
                grace_s=settings.server.drain_notice_s + settings.server.drain_timeout_s + _SLACK_S,
                environ=self._environ(),
            )
            for number, port in enumerate(self.ports(), 1)
        ]
        workers = [
            ChildSpec(
                name=_numbered("worker", number, self.num_workers),
                argv=self._argv("inferflux.workers", self._threads()),
                rank=_RANK_WORKER,
                grace_s=settings.worker.drain_timeout_s + _SLACK_S,
                environ={**self._environ(), **self._ranks()},
            )
            for number in range(1, self.num_workers + 1)
        ]
        return [*apis, *workers]

    def ports(self) -> list[int]:
        return [self.port + number for number in range(self.num_apis)]

    def urls(self) -> list[str]:
        """Where a client on this machine finds each API replica."""
        server = self.settings.server
        scheme = "https" if server.tls_cert else "http"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)  # noqa: S104
        return [f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}" for port in self.ports()]

    def _argv(self, module: str, extra: Mapping[str, str]) -> tuple[str, ...]:
        flags = {**self.flags, "logging.format": self.log_format, **extra}
        sets = (part for path, value in flags.items() for part in ("--set", f"{path}={value}"))
        return (sys.executable, "-m", module, "--config", str(self.config), *sets)

    def _threads(self) -> Mapping[str, str]:
        """Workers that share this machine share its cores: threads that wait for each other's cores are slower."""
        if self.num_workers == 1:
            return {}
        runtime, share = self.settings.runtime, str(max(1, num_physical_cores() // self.num_workers))
        given = {"llamacpp": runtime.llamacpp.threads, "torch": runtime.torch.threads}
        return {f"runtime.{name}.threads": share for name, num_threads in given.items() if not num_threads}

    def _ranks(self) -> Mapping[str, str]:
        """Each worker starts its other ranks itself: they end with it."""
        return {WORLD_SIZE: str(self.world_size)} if self.world_size > 1 else {}

    def _environ(self) -> Mapping[str, str]:
        return {"FORCE_COLOR": "1"} if self.coloured else {}


def _numbered(name: str, number: int, of: int) -> str:
    return name if of == 1 else f"{name}-{number}"


def free_port(host: str) -> int:
    """A port that nobody listens on right now."""
    with _bound(host, 0) as listener:
        return int(listener.getsockname()[1])


def check_port(host: str, port: int, flag: str) -> None:
    """Raises CommandFailed when a server could not listen there."""
    try:
        _bound(host, port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = f"port {port} is taken: stop what listens there, or choose another with {flag}"
        else:
            why = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise CommandFailed(why) from None


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _bound(host: str, port: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
