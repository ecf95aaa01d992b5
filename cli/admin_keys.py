"""`inferctl admin api-keys`: make API keys, list them, and revoke them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer

from .options import DEFAULT_URL, ApiKey, DryRun, Json, Url, connect, dry, print_json
from .terminal import cell, note, table_console, write

PATH = "/v1/admin/api_keys"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def api_keys(
    list_: Annotated[bool, typer.Option("--list", help="Show every key; also when nothing else is asked.")] = False,
    create: Annotated[bool, typer.Option("--create", help="Make a key, and print it once.")] = False,
    revoke: Annotated[str | None, typer.Option("--revoke", metavar="ID", help="Take a key back.")] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Whose the new key is; none: a tenant of its own.")
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help="generate, read or admin; generate and read unless given.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="The only models it may use.")] = None,
    name: Annotated[str, typer.Option("--name", help="What it is for.")] = "",
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="30d", help="When it ends: 90s, 5m, 12h, 30d.")
    ] = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Make, list and revoke API keys. Every API replica follows within a second."""
    if sum((list_, create, revoke is not None)) > 1:
        raise typer.BadParameter("say one of --list, --create and --revoke ID")
    if not create and (tenant or scope or model or name or expires):
        raise typer.BadParameter("--tenant, --scope, --model, --name and --expires belong to --create")
    with connect(url, api_key) as client:
        if create:
            wanted: dict[str, Any] = {"tenant": tenant, "scopes": scope, "models": model, "name": name}
            wanted["expires_in_s"] = None if expires is None else _seconds(expires)
            _made(client.post(dry(PATH, dry_run), {key: value for key, value in wanted.items() if value}), as_json)
        elif revoke is not None:
            answer = client.delete(dry(f"{PATH}/{quote(revoke, safe='')}", dry_run))
            if as_json:
                print_json(answer)
            else:
                note(f"{revoke}: {'would be revoked' if dry_run else 'revoked'}")
        else:
            _list(client.get(PATH), as_json)


def _made(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
    elif answer["key"] is None:
        note(f"would make a key of the tenant {answer['tenant']} with the scopes {', '.join(answer['scopes'])}")
    else:
        note(f"the key {answer['id']} of the tenant {answer['tenant']}; it is shown this once and kept nowhere:")
        write(answer["key"] + "\n")


def _list(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    from rich.table import Table

    table = Table("id", "tenant", "scopes", "models", "name", "made", "expires", box=None, pad_edge=False)
    for key in answer["data"]:
        made = "settings" if key["origin"] == "settings" else _day(key["created"])
        ends = "expired" if key["expired"] else _day(key["expires"]) if key["expires"] else "never"
        models = ", ".join(key["models"]) or "all"
        table.add_row(
            key["id"], cell(key["tenant"]), ", ".join(key["scopes"]), cell(models), cell(key["name"]), made, ends
        )
    table_console().print(table)


def _day(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None or not int(match[1]):
        raise typer.BadParameter(f"--expires {text!r}: write it as 90s, 5m, 12h or 30d")
    return float(match[1]) * _UNITS[match[2]]
