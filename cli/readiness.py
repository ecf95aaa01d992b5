"""When a launch has become a server: its replicas accept requests, and a model answers them."""

from __future__ import annotations

import asyncio
from typing import Any

from inferflux.config.logs import get_logger

from .client import Client
from .errors import CommandFailed
from .launch import Launch

_POLL_S = 0.1
_REMIND_S = 10.0

log = get_logger("serve")


class NotReady(CommandFailed):
    """Something is still missing; the message says what."""


async def wait_ready(launch: Launch) -> list[dict[str, Any]]:
    """Ask until everything is ready, saying now and then what is missing. Returns what `/v1/models` lists.

    Replicas without workers of their own have no model to wait for; without a key that may read, none is listed.
    """
    loop = asyncio.get_running_loop()
    next_reminder_s = loop.time() + _REMIND_S
    while True:
        try:
            return await asyncio.to_thread(_ask, launch)
        except CommandFailed as missing:
            if loop.time() >= next_reminder_s:
                next_reminder_s = loop.time() + _REMIND_S
                log.info("not ready yet", missing=str(missing))
        await asyncio.sleep(_POLL_S)


def _ask(launch: Launch) -> list[dict[str, Any]]:
    key = next((key.key for key in launch.settings.auth.api_keys if "read" in key.scopes and not key.models), None)
    models: list[dict[str, Any]] = []
    for url in launch.urls():
        # The process is ours and on this machine; its certificate is for the name that others know it by.
        with Client(url, key, timeout_s=5.0, verify=False) as client:
            status, answer = client.probe("/readyz")
            if status != 200:
                raise NotReady(f"{url}/readyz says {status}: {answer}")
            if key is not None:
                models = client.get("/v1/models")["data"]
                if launch.num_workers and not any(model["ready"] for model in models):
                    raise NotReady("no model is loaded yet")
    return models
