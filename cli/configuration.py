"""`inferctl config`: is this settings file right, and what is in force?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from .options import Config, Json, Set, print_json


def config(
    check: Annotated[Path | None, typer.Option("--check", metavar="FILE", help="Check a settings file alone.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print every setting in force and where it came from.")] = False,
    file: Config = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Check a settings file, or show the settings in force (file, then environment, then flags)."""
    if (check is None) == (not show):
        raise typer.BadParameter("say --check FILE or --show")
    if check is not None:
        _check(check, as_json)
    else:
        _show(file, set_ or [], as_json)


def _check(path: Path, as_json: bool) -> None:
    from inferflux.api.oidc import check_settings
    from inferflux.config import load
    from inferflux.registry.guardrails.policy import check_guardrails
    from inferflux.registry.tenants import Tenants

    settings = load.load(path, {}).settings
    Tenants.from_settings(settings)
    check_settings(settings.auth)
    check_guardrails(settings.guardrails)
    if as_json:
        print_json({"file": str(path), "valid": True})
    else:
        typer.echo(f"{path}: valid")


def _show(path: Path | None, assignments: list[str], as_json: bool) -> None:
    from inferflux.config import load

    loaded = load.load(load.find(path), os.environ, load.parse_assignments(assignments))
    rows = load.shown(loaded)
    if as_json:
        print_json({setting: {"value": value, "origin": origin} for setting, value, origin in rows})
        return
    width = max(len(setting) for setting, _, _ in rows)
    for setting, value, origin in rows:
        text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
        typer.echo(f"{setting:<{width}}  {text}  ({origin})")
