"""`inferctl doctor`: what is wrong with this set-up, and the fix."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from .options import DEFAULT_URL, ApiKey, Config, Json, Set, Url, print_json
from .terminal import table_console

if TYPE_CHECKING:
    from pathlib import Path

    from .checks import Check

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    config: Config = None,
    set_: Set = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Check this set-up line by line. Exit status 1 when something is broken."""
    checks = []
    for check in _checks(config, set_ or [], url, api_key):
        checks.append(check)
        if not as_json:
            _print(check)
    if as_json:
        print_json([{"name": c.name, "state": c.state, "found": c.found, "fix": c.fix} for c in checks])
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


def _checks(config: Path | None, assignments: list[str], url: str, api_key: str | None) -> Iterator[Check]:
    from inferflux.config import load
    from inferflux.config.errors import ConfigError

    from . import checks

    yield checks.check_platform()
    path = load.find(config)
    try:
        settings = load.load(path, os.environ, load.parse_assignments(assignments)).settings
    except ConfigError as error:
        yield checks.Check("settings", "fail", str(error), "correct it; `inferctl config --check FILE` checks again")
        return
    yield from checks.check_settings(settings, path)
    yield checks.check_broker(settings)
    models = list(checks.check_models(settings))
    yield from models
    yield from checks.check_llama(needed=any("(llamacpp)" in model.found for model in models))
    if settings.broker.url is None:
        yield checks.check_store(settings)
    yield from checks.check_server(url, settings)
    yield checks.check_client_key(api_key)


def _print(check: Check) -> None:
    from rich.text import Text

    line = Text.assemble((f"{check.state:<5}", _STYLES[check.state]), f"{check.name:<14} {check.found}")
    if check.fix:
        line.append(f"\n      fix: {check.fix}", "yellow")
    table_console().print(line, soft_wrap=True)
