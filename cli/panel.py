"""What `inferctl serve` prints once requests are answered."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from inferflux.broker.credentials import CREDENTIALS_FILE, tenant_role
from inferflux.config.logs import get_logger
from inferflux.config.settings import Settings

from .client import Client
from .errors import CommandFailed
from .launch import DEV_KEY, Launch
from .models import is_stub, pick_default
from .options import DEFAULT_URL

_POLL_S = 0.1
_REMIND_S = 10.0

log = get_logger("serve")


async def announce(launch: Launch, nats_url: str | None = None) -> None:
    """Wait until every API replica is ready, then print where everything is and what to try.

    `nats_url` is the embedded broker's, where there is one.
    """
    urls = launch.urls()
    if not urls:
        return
    for url in urls:
        await _wait_ready(url)
    models = await asyncio.to_thread(_models, urls[0], launch.settings)
    Console().print(
        Panel(ready_text(launch, models, nats_url), title="InferFlux is ready", border_style="green", expand=False)
    )


def ready_text(launch: Launch, models: list[dict[str, Any]], nats_url: str | None) -> Text:
    """Addresses, models, three commands to try, and the way in for those who publish to NATS themselves."""
    settings, url = launch.settings, launch.urls()[0]
    text = Text()
    text.append("HTTP    ", "bold").append(", ".join(launch.urls()) + "\n")
    text.append("Models  ", "bold")
    for number, model in enumerate(models):
        text.append(", " if number else "").append(str(model["id"]))
        if is_stub(model):
            text.append(" STUB: made-up text, no model is behind it", "bold red")
    text.append("none yet" if not models else "").append("\n")
    text.append("NATS    ", "bold").append(_nats(settings, nats_url)).append("\n\n")
    text.append("Try, in another shell:\n", "bold")
    model_id = str(pick_default(models)["id"]) if models else "MODEL"
    for command in _commands(settings, url, model_id):
        text.append(command + "\n", "cyan")
    return text


def _commands(settings: Settings, url: str, model: str) -> list[str]:
    keys = [key.key for key in settings.auth.api_keys]
    key = DEV_KEY if DEV_KEY in keys else "YOUR_KEY"
    elsewhere = f" INFERCTL_URL={url}" if url != DEFAULT_URL else ""
    body = f'{{"model": "{model}", "prompt": "Hello", "max_tokens": 32, "stream": true}}'
    sdk = (
        f'from openai import OpenAI; c = OpenAI(base_url="{url}/v1", api_key="{key}"); '
        f'print(c.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello"}}])'
        ".choices[0].message.content)"
    )
    return [
        f"curl -N {url}/v1/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' "
        f"-d {shlex.quote(body)}",
        f'INFERCTL_API_KEY={key}{elsewhere} inferctl completion --prompt "Hello" --stream --model {shlex.quote(model)}',
        f"python -c {shlex.quote(sdk)}",
    ]


def _nats(settings: Settings, embedded: str | None) -> str:
    if embedded is None:
        return "the servers in broker.url"
    publishers = [tenant.id for tenant in settings.tenants if tenant.publish]
    if not publishers:
        return f"{embedded} (a tenant with `publish: true` gets credentials of its own)"
    logins = ", ".join(tenant_role(tenant) for tenant in publishers)
    return f"{embedded}; to publish straight to it: the login {logins} in {_credentials(settings)}"


def _credentials(settings: Settings) -> Path:
    return Path(settings.broker.store_dir) / CREDENTIALS_FILE


async def _wait_ready(url: str) -> None:
    loop = asyncio.get_running_loop()
    next_reminder_s = loop.time() + _REMIND_S
    # The process is ours and on this machine; its certificate is for the name that others know it by.
    with Client(url, timeout_s=5.0, verify=False) as client:
        while True:
            try:
                status, answer = await asyncio.to_thread(client.probe, "/readyz")
            except CommandFailed:
                status, answer = 0, {}
            if status == 200:
                return
            if loop.time() >= next_reminder_s:
                next_reminder_s = loop.time() + _REMIND_S
                log.info("not ready yet", url=url, answer=answer or "none")
            await asyncio.sleep(_POLL_S)


def _models(url: str, settings: Settings) -> list[dict[str, Any]]:
    readers = [key.key for key in settings.auth.api_keys if "read" in key.scopes]
    if not readers:
        return []
    with Client(url, readers[0], timeout_s=5.0, verify=False) as client:
        try:
            return list(client.get("/v1/models")["data"])
        except CommandFailed as failure:
            log.warning("cannot list the models", reason=str(failure))
            return []
