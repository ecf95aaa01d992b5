"""What `inferctl serve` prints once requests are answered."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from inferflux.broker.credentials import CREDENTIALS_FILE, tenant_role
from inferflux.config.settings import Settings

from .launch import DEV_KEY, Launch
from .models import is_stub, pick_default
from .options import DEFAULT_URL


def print_panel(launch: Launch, models: list[dict[str, Any]], nats_url: str | None) -> None:
    """Where everything is and what to try. `nats_url` is the embedded broker's, where there is one."""
    console = Console(highlight=False)
    places = place_text(launch, models, nats_url)
    if sys.stdout.isatty():
        console.print(Panel(places, title="InferFlux is ready", border_style="green", expand=False))
    else:
        console.print("InferFlux is ready", places, sep="\n", soft_wrap=True)
    console.print("Try, in another shell:", style="bold")
    # Outside the frame and never broken into lines, so that they can be copied.
    for command in commands(launch, str(pick_default(models)["id"]) if models else "MODEL"):
        console.print(Text(command, "cyan"), soft_wrap=True)


def place_text(launch: Launch, models: list[dict[str, Any]], nats_url: str | None) -> Text:
    """HTTP addresses, models (a stub is called one), and NATS with the way in for direct publishers."""
    text = Text()
    text.append("HTTP    ", "bold").append(", ".join(launch.urls()))
    for number, model in enumerate(models):
        text.append("\n        " if number else "\nModels  ", "bold").append(str(model["id"]))
        if is_stub(model):
            text.append(f"  STUB, answers are made up: {model['stub_reason'] or 'as configured'}", "bold red")
    text.append("\nNATS    ", "bold").append(_nats(launch.settings, nats_url))
    return text


def commands(launch: Launch, model: str) -> list[str]:
    """Three ways to ask, ready to paste into another shell."""
    url = launch.urls()[0]
    key = DEV_KEY if any(each.key == DEV_KEY for each in launch.settings.auth.api_keys) else "YOUR_KEY"
    elsewhere = f" INFERCTL_URL={url}" if url != DEFAULT_URL else ""
    inferctl = f"INFERCTL_API_KEY={key}{elsewhere} {_program()}"
    body = f'{{"model": "{model}", "prompt": "Hello", "max_tokens": 32, "stream": true}}'
    return [
        f"curl -N {url}/v1/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' "
        f"-d {shlex.quote(body)}",
        f'{inferctl} completion --prompt "Hello" --stream --model {shlex.quote(model)}',
        f"{inferctl} chat --interactive --model {shlex.quote(model)}",
    ]


def _program() -> str:
    """`inferctl` as another shell in this folder finds it: it may know nothing of this environment."""
    here = Path(sys.executable).with_name("inferctl")
    if not here.is_file() or not here.is_relative_to(Path.cwd()):
        return "inferctl" if not here.is_file() else shlex.quote(str(here))
    return shlex.quote(str(here.relative_to(Path.cwd())))


def _nats(settings: Settings, embedded: str | None) -> str:
    if embedded is None:
        return "the servers in broker.url"
    publishers = [tenant.id for tenant in settings.tenants if tenant.publish]
    if not publishers:
        return f"{embedded} (a tenant with `publish: true` gets credentials of its own)"
    logins = ", ".join(tenant_role(tenant) for tenant in publishers)
    file = Path(settings.broker.store_dir) / CREDENTIALS_FILE
    return f"{embedded}\n        to publish to it directly: the login {logins} in {file}"
