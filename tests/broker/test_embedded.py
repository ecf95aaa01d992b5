"""The embedded server: one holder for a store, secrets that stay, and a child that is brought back."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
from harness.nats import settings_for_tests
from harness.world import LIMITS, WAIT_S

from inferflux.broker import credentials
from inferflux.broker.embedded import EmbeddedServer
from inferflux.broker.errors import BrokerUnavailable, ConfigError
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import Lane, ServiceClass
from inferflux.config.settings import BrokerSettings, Settings, TenantSettings

pytestmark = pytest.mark.integration

LANE = Lane("m", ServiceClass.DEFAULT, "acme")

CHILD = """
import asyncio, sys
from inferflux.broker.embedded import EmbeddedServer
from inferflux.config.settings import BrokerSettings, Settings

async def main():
    server = EmbeddedServer(Settings(broker=BrokerSettings(port=0, store_dir=sys.argv[1])))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    broker = BrokerSettings(port=0, store_dir=str(tmp_path / "nats"), timeout_s=3.0)
    return settings_for_tests(broker=broker)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[EmbeddedServer]:
    server = EmbeddedServer(settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def test_each_role_can_connect(settings: Settings) -> None:
    tenants = (TenantSettings(id="acme", publish=True), TenantSettings(id="globex"))
    settings = msgspec.structs.replace(settings, tenants=tenants)
    async with running(settings):
        for role in ("admin", "api", "worker"):
            broker = await JetStreamBroker.connect(settings, role, "test")
            assert broker.connected
            await broker.close()
        assert credentials.resolve(settings.broker, "t-acme").user == "t-acme"
        with pytest.raises(ConfigError, match="publish: true"):
            credentials.resolve(settings.broker, "t-globex")


async def test_secrets_go_to_those_who_need_them_and_stay(settings: Settings) -> None:
    async with running(settings):
        api, worker = (credentials.resolve(settings.broker, role) for role in ("api", "worker"))
        assert api.stamp_secret == worker.stamp_secret
        assert api.stamp_secret is not None
        assert worker.seal_secret is not None
        assert api.seal_secret is None
        assert credentials.resolve(settings.broker, "admin").stamp_secret is None
    async with running(settings):
        again = credentials.resolve(settings.broker, "worker")
        assert again == worker


async def test_store_is_private(settings: Settings) -> None:
    async with running(settings):
        names = ("", "credentials.json", "nats-server.conf", "nats-server.err", "lock")
        modes = [stat.S_IMODE(os.stat(os.path.join(settings.broker.store_dir, name)).st_mode) for name in names]
        assert modes == [0o700, 0o600, 0o600, 0o600, 0o600]


async def test_restart_keeps_prompts(settings: Settings) -> None:
    async with running(settings):
        api = await JetStreamBroker.connect(settings, "api", "test")
        receipt = await api.publish_prompt(LANE, b"kept", msg_id="1")
        await api.close()
    async with running(settings):
        worker = await JetStreamBroker.connect(settings, "worker", "test")
        # A busy server may say "nothing" of a prompt that is there.
        async with asyncio.timeout(WAIT_S):
            while (delivery := await worker.pull(LANE, LIMITS)) is None:
                await asyncio.sleep(0.01)
        assert (delivery.seq, delivery.body) == (receipt.seq, b"kept")
        await worker.close()


async def test_second_holder_of_a_store_is_refused(settings: Settings) -> None:
    async with running(settings) as first:
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            await EmbeddedServer(settings).start()
        assert first.pid is not None
        assert psutil.pid_exists(first.pid)
    async with running(settings):
        pass


async def test_killed_server_is_brought_back_with_its_streams(settings: Settings) -> None:
    async with running(settings) as server:
        worker = await JetStreamBroker.connect(settings, "worker", "test")
        killed = server.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    # Only the supervisor may make the tape anew; this worker could not.
                    assert await worker.tape_fill() == 0.0
                    break
                except BrokerUnavailable:
                    await asyncio.sleep(0.02)
        assert server.pid not in (None, killed)
        await worker.close()


async def test_stop_leaves_no_process(settings: Settings) -> None:
    async with running(settings) as server:
        pid = server.pid
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert server.pid is None


async def test_port_in_use_names_the_port_and_the_setting(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker = msgspec.structs.replace(settings.broker, port=port)
        with pytest.raises(ConfigError, match=rf"port {port} .*broker\.port"):
            await EmbeddedServer(msgspec.structs.replace(settings, broker=broker)).start()
    async with running(settings):
        pass


async def test_replicas_need_a_cluster(settings: Settings) -> None:
    broker = msgspec.structs.replace(settings.broker, replicas=3)
    with pytest.raises(ConfigError, match=r"broker\.replicas"):
        await EmbeddedServer(msgspec.structs.replace(settings, broker=broker)).start()


async def test_bad_configuration_tells_what_the_server_said(settings: Settings) -> None:
    broker = msgspec.structs.replace(settings.broker, sync_interval="often")
    with pytest.raises(ConfigError, match="often"):
        await EmbeddedServer(msgspec.structs.replace(settings, broker=broker)).start()


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not end a child with its parent")
async def test_server_dies_with_its_parent_and_frees_the_store(settings: Settings, tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, settings.broker.store_dir, stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert parent.stdout is not None
    server = psutil.Process(int(await parent.stdout.readline()))
    with pytest.raises(ConfigError, match=f"process {parent.pid}"):
        await EmbeddedServer(settings).start()
    parent.kill()
    await parent.wait()
    # At once: the server that is going away is waited for, not complained about.
    async with running(settings):
        # Where nobody reaps orphans it stays as a zombie.
        assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


async def test_without_a_server_the_fix_is_named(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"inferctl serve.*broker\.url"):
        credentials.resolve(settings.broker, "worker")
