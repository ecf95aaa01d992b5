"""What an API process does when its parts fail."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from litestar import Litestar

from inferflux.api import __main__ as process
from inferflux.api import presence, pressure, vigil
from inferflux.broker.errors import ConfigError, InferFluxError
from inferflux.config.settings import ServerSettings


@pytest.mark.parametrize("begun", [False, True])
async def test_application_that_cannot_start_or_stop_is_an_error(begun: bool) -> None:
    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        if begun:
            server.should_exit = True
            yield
        raise RuntimeError("a part is broken")

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    app = Litestar(lifespan=[lifespan], openapi_config=None, logging_config=None)
    config = process._uvicorn(app, ServerSettings(port=port))
    server = process.Server(config, None, ServerSettings())  # type: ignore[arg-type]

    # Newer versions of uvicorn leave by themselves when the application does not start.
    with pytest.raises((InferFluxError, SystemExit)) as caught:
        await server.serve()
    assert getattr(caught.value, "code", 1) != 0


@pytest.mark.parametrize(("error", "code"), [(ConfigError("x"), 2), (InferFluxError("x"), 1)])
def test_failures_are_exit_codes(monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["api"])
    monkeypatch.setattr(process, "load_for_process", fail)

    with pytest.raises(SystemExit) as caught:
        process.main()
    assert caught.value.code == code


async def test_pressure_goes_on_after_a_bug(apis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "INTERVAL_S", 0.01)
    api = await apis.start()
    watched, backlog = api.parts.pressure, api.broker.backlog

    async def broken() -> Counter[Any]:
        raise RuntimeError("a bug")

    api.broker.backlog = broken
    await _until(lambda: not watched.answering)
    api.broker.backlog = backlog

    await _until(lambda: watched.answering)


async def test_vigil_goes_on_after_a_bug(apis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "LONGEST_PAUSE_S", 0.01)
    api = await apis.start()
    looks = 0

    async def broken(_: float) -> None:
        nonlocal looks
        looks += 1
        raise RuntimeError("a bug")

    api.parts.vigil.look = broken

    await _until(lambda: looks > 2)


async def test_presence_goes_on_after_a_bug(apis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "BEAT_S", 0.01)
    api = await apis.start()
    told, bucket = api.parts.presence, api.broker.bucket

    async def broken(_: str) -> Any:
        raise RuntimeError("a bug")

    api.broker.bucket = broken
    await asyncio.sleep(0.05)
    api.broker.bucket = bucket
    told._beaten_s = None

    await _until(lambda: told.certain)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)
