from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import msgspec
import pytest
from harness.asgi import Call, running
from harness.scripted_worker import SECRET, ScriptedWorker, Turn

from inferflux.api.app import create_app
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.stamp import Stamper
from inferflux.config.audit import Audit
from inferflux.config.settings import (
    AuthSettings,
    KeySettings,
    QueueSettings,
    ServerSettings,
    Settings,
    TenantSettings,
)
from inferflux.registry.control import Control
from inferflux.registry.models import ModelEntry, Models
from inferflux.registry.store import PolicyStore
from inferflux.registry.tenants import Tenants

KEY = "key-all"
SETTINGS = Settings(
    server=ServerSettings(hold_status_s=0.3, ping_interval_s=0.2, max_body_bytes=1_000_000),
    # Long: nothing ends for want of a worker unless a test wants it to.
    queue=QueueSettings(no_backend_grace_s=600.0),
    auth=AuthSettings(
        api_keys=(
            KeySettings(key=KEY, tenant="acme", scopes=("generate", "read", "admin")),
            KeySettings(key="key-read", tenant="acme", scopes=("read",)),
            KeySettings(key="key-generate", tenant="acme", scopes=("generate",)),
            KeySettings(key="key-other-model", scopes=("generate", "read"), models=("big",)),
            KeySettings(key="key-bounded", tenant="bounded"),
        )
    ),
    tenants=(
        TenantSettings(id="acme", classes=("priority", "default", "batch")),
        TenantSettings(id="bounded", classes=("batch",), max_queued=2),
    ),
)
MODELS = Models(
    [
        ModelEntry(id="org/small", path=None, backend="llamacpp", default=True, aliases=("small",)),
        ModelEntry(id="big", path=None, backend="llamacpp"),
        ModelEntry(id="pretend", path=None, backend="stub", stub_reason="the model file x.gguf is missing"),
    ]
)


class Api:
    """A running application over a memory broker, a client with every right, and a scripted worker."""

    def __init__(self, settings: Settings, hub: MemoryHub | None) -> None:
        self.settings = settings
        self.hub = MemoryHub(settings=settings) if hub is None else hub
        self.broker = MemoryBroker(self.hub)
        tenants = Tenants.from_settings(settings)
        control = Control(settings, PolicyStore(self.broker), tenants, Audit(settings.logging, "api"))
        self.app = create_app(settings, self.broker, Stamper(SECRET), Models(MODELS), control)
        self.parts = self.app.state.parts
        self.worker = ScriptedWorker(MemoryBroker(self.hub), "org/small", "pretend")
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://api", headers={"authorization": f"Bearer {KEY}"}
        )

    async def chat(self, key: str = KEY, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "Hi"}]} | fields
        return await self.client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})

    def call(self, path: str, body: Any = None, **headers: str) -> Call:
        """A request whose client can hang up; without a body it reads."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"} | given
        return Call(self.app, "GET" if body is None else "POST", path, msgspec.json.encode(body), headers)

    async def until_running(self, number: int = 1) -> Turn:
        """The newest of so many turns, once it is claimed."""
        async with asyncio.timeout(30):
            while len(self.worker.turns) < number or not self.worker.turns[-1].attempt:
                await asyncio.sleep(0.005)
        return self.worker.turns[-1]


class Apis:
    """Makes applications and ends them with the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.settings = SETTINGS

    async def start(self, settings: Settings = SETTINGS, *, worker: bool = True, beside: Api | None = None) -> Api:
        """`beside` is another replica of the same fleet, whose worker serves both."""
        api = Api(settings, None if beside is None else beside.hub)
        if beside is not None:
            api.worker = beside.worker
            worker = False
        await self._stack.enter_async_context(api.client)
        await self._stack.enter_async_context(running(api.app))
        if worker:
            await self._stack.enter_async_context(api.worker)
        await api.parts.follower.ready.wait()
        return api


@pytest.fixture
async def apis() -> AsyncIterator[Apis]:
    async with AsyncExitStack() as stack:
        yield Apis(stack)


@pytest.fixture
async def api(apis: Apis) -> Api:
    return await apis.start()
