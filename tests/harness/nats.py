"""Real nats-servers for tests: one, or a cluster of three, under the generated per-role permissions."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from inferflux.broker import accounts, permissions
from inferflux.broker.credentials import CREDENTIALS_FILE, Connection, Login, StoredCredentials, resolve
from inferflux.broker.embedded import die_with_parent, find_binary
from inferflux.broker.errors import BrokerError
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.jetstream_api import JetStreamApi
from inferflux.broker.link import Link
from inferflux.broker.subjects import STREAM_PROMPTS
from inferflux.config.settings import BrokerSettings, Settings, TapeSettings, TenantSettings

from .ports import free_ports

TEMPLATE = Path(__file__).parents[2] / "deploy" / "nats" / "cluster.conf"
ALONE = """
server_name: $NATS_NAME
listen: $NATS_LISTEN
max_payload: 8MB
jetstream { store_dir: $NATS_STORE_DIR, max_memory_store: 320MB }
include ./users.conf
"""
TENANTS = (TenantSettings(id="acme", publish=True), TenantSettings(id="a.b c", classes=("batch",), publish=True))
START_S = 60.0
RELOADED = "Reloaded server configuration"


class NatsServers:
    """One nats-server, or three that form a cluster. `settings` find it by its store directory, whatever the role.
    `tls` is a `tls {}` block for its configuration."""

    def __init__(self, path: Path, settings: Settings, *, num_nodes: int = 1, tls: str = "") -> None:
        self._path = path
        ports = free_ports(2 * num_nodes)
        self._ports, self._routes = ports[:num_nodes], ports[num_nodes:]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._has_streams = False
        path.mkdir(parents=True, exist_ok=True)
        tenants = settings.tenants or TENANTS
        self._allowed = permissions.roles({each.id: each.classes for each in tenants if each.publish})
        self._logins = {role: Login(role, secrets.token_urlsafe(16)) for role in self._allowed}
        self.url = ",".join(f"nats://127.0.0.1:{port}" for port in self._ports)
        stored = StoredCredentials(self.url, self._logins, secrets.token_urlsafe(16), secrets.token_urlsafe(16))
        (path / CREDENTIALS_FILE).write_bytes(msgspec.json.encode(stored))
        (path / "users.conf").write_bytes(accounts.accounts_file(self._logins, self._allowed))
        (path / "nats.conf").write_text((TEMPLATE.read_text() if num_nodes > 1 else ALONE) + tls)
        broker = msgspec.structs.replace(settings.broker, store_dir=str(path), replicas=num_nodes)
        self.settings = msgspec.structs.replace(settings, broker=broker, tenants=tenants)

    @property
    def num_nodes(self) -> int:
        return len(self._ports)

    def start(self, node: int = 0) -> None:
        """Start one node and return when it takes connections."""
        others = [f"nats://127.0.0.1:{port}" for index, port in enumerate(self._routes) if index != node]
        environ = os.environ | {
            "NATS_NAME": f"n{node}",
            "NATS_LISTEN": f"127.0.0.1:{self._ports[node]}",
            "NATS_CLUSTER_LISTEN": f"127.0.0.1:{self._routes[node]}",
            "NATS_ROUTES": f"[{', '.join(others)}]",
            "NATS_STORE_DIR": str(self._path / f"node-{node}"),
        }
        log = self._path / f"node-{node}.log"
        self._processes[node] = subprocess.Popen(
            die_with_parent(self._command(log)),
            env=environ,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_S
        while not _listens(self._ports[node]):
            status = self._processes[node].poll()
            assert status is None, f"nats-server ended with {status}: {log.read_text()}"
            assert time.monotonic() < deadline, "nats-server does not listen"
            time.sleep(0.01)

    def _command(self, log: Path) -> list[str]:
        return [str(find_binary()), "-c", str(self._path / "nats.conf"), "-l", str(log)]

    def start_all(self) -> None:
        for node in range(self.num_nodes):
            self.start(node)

    def kill(self, node: int = 0) -> None:
        """As if the machine had died."""
        self._end(node, signal.SIGKILL)

    def stop(self, node: int = 0) -> None:
        self._end(node, signal.SIGTERM)

    def freeze(self, node: int = 0) -> None:
        """It keeps its connections and answers nothing until `thaw`."""
        process = self._processes[node]
        process.send_signal(signal.SIGSTOP)
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)

    def thaw(self, node: int = 0) -> None:
        self._processes[node].send_signal(signal.SIGCONT)

    def revoke(self, role: str) -> None:
        """Make every node refuse the role's password, to clients that are connected too, until `restore`. Both return
        when the nodes do as they say; a connection made meanwhile may be closed again."""
        self._reload(self._logins | {role: Login(role, secrets.token_urlsafe(16))})

    def restore(self) -> None:
        self._reload(self._logins)

    def close(self) -> None:
        for node in tuple(self._processes):
            self._end(node, signal.SIGKILL)
        for node in range(self.num_nodes):
            shutil.rmtree(self._path / f"node-{node}", ignore_errors=True)

    async def leader(self, stream: str) -> int:
        """The node that leads a stream of the cluster."""
        link = Link(self.connection("admin"), name="test", timeout_s=START_S)
        await link.open(START_S)
        info = await JetStreamApi(link, timeout_s=START_S).call("STREAM", "INFO", stream)
        await link.close()
        return int(info["cluster"]["leader"].removeprefix("n"))

    async def until_in_step(self) -> None:
        """Return when every replica of every stream and consumer has what its leader has, so that any one node may
        go: what an operator waits for between two nodes of a rolling restart."""
        link = Link(self.connection("admin"), name="test", timeout_s=START_S)
        await link.open(START_S)
        try:
            js = JetStreamApi(link, timeout_s=START_S)
            async with asyncio.timeout(2 * START_S):
                while not await _in_step(js, self.num_nodes):
                    await asyncio.sleep(0.1)
        finally:
            await link.close()

    def connection(self, role: str) -> Connection:
        return resolve(self.settings.broker, role)

    async def connect(self, role: str, name: str = "test", settings: Settings | None = None) -> JetStreamBroker:
        if not self._has_streams:
            self._has_streams = True
            await (await JetStreamBroker.connect(self.settings, "admin", name, deadline_s=START_S)).close()
        return await JetStreamBroker.connect(settings or self.settings, role, name, deadline_s=START_S)

    @asynccontextmanager
    async def broker(self, role: str, settings: Settings | None = None) -> AsyncIterator[JetStreamBroker]:
        broker = await self.connect(role, settings=settings)
        try:
            yield broker
        finally:
            await broker.close()

    def _reload(self, logins: dict[str, Login]) -> None:
        (self._path / "users.conf").write_bytes(accounts.accounts_file(logins, self._allowed))
        logs = {node: self._path / f"node-{node}.log" for node in self._processes}
        wanted = {node: log.read_text().count(RELOADED) + 1 for node, log in logs.items()}
        for process in self._processes.values():
            process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + START_S
        while any(log.read_text().count(RELOADED) < wanted[node] for node, log in logs.items()):
            assert time.monotonic() < deadline, "nats-server does not read its configuration again"
            time.sleep(0.01)

    def _end(self, node: int, how: signal.Signals) -> None:
        process = self._processes.pop(node)
        process.send_signal(how)
        process.wait(START_S)


async def _in_step(js: JetStreamApi, num_nodes: int) -> bool:
    try:
        streams = (await js.call("STREAM", "LIST"))["streams"]
        consumers = (await js.call("CONSUMER", "LIST", STREAM_PROMPTS))["consumers"] or []
    except BrokerError:
        return False
    clusters = [each["cluster"] for each in (*streams, *consumers)]
    return all(
        cluster.get("leader")
        and len(peers := cluster.get("replicas", ())) == num_nodes - 1
        and all(peer["current"] and not peer.get("offline") for peer in peers)
        for cluster in clusters
    )


def settings_for_tests(**sections: msgspec.Struct) -> Settings:
    """Settings with a small tape and a short broker timeout; sections given replace the defaults."""
    defaults = {"broker": BrokerSettings(timeout_s=3.0), "tape": TapeSettings(max_bytes=32 * 1024 * 1024)}
    return Settings(**(defaults | sections))  # type: ignore[arg-type]


# Three servers on a busy machine take their time to agree.
PATIENT = settings_for_tests(
    broker=BrokerSettings(timeout_s=30.0), tape=TapeSettings(max_bytes=32 * 1024 * 1024, ack_timeout_s=5.0)
)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    """One server for the whole run: give models, tenants and requests names of their own, and leave it running."""
    servers = NatsServers(tmp_path_factory.mktemp("nats"), settings_for_tests())
    servers.start_all()
    yield servers
    servers.close()


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsServers]:
    """A server for one test, which may stop, kill, freeze and restart it."""
    servers = NatsServers(tmp_path / "nats", settings_for_tests())
    servers.start_all()
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def nats_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    """Three servers for the whole run; every stream has three replicas."""
    servers = NatsServers(tmp_path_factory.mktemp("cluster"), PATIENT, num_nodes=3)
    servers.start_all()
    yield servers
    servers.close()


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[NatsServers]:
    """Three servers for one test, which may stop, kill, freeze and restart them."""
    servers = NatsServers(tmp_path / "cluster", PATIENT, num_nodes=3)
    servers.start_all()
    yield servers
    servers.close()
