"""`inferctl admin rate-limit`: what keys and tenants may use up."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import DEFAULT_URL, ApiKey, DryRun, Json, Url, connect, dry, print_json
from .terminal import cell, note, table_console

PATH = "/v1/admin/rate_limit"
GIVE_BACK = "default"
KEY_BOUNDS = ("requests_per_minute", "tokens_per_minute")
TENANT_BOUNDS = (*KEY_BOUNDS, "tokens_per_month")


def rate_limit(
    get: Annotated[bool, typer.Option("--get", help="Only show; also when nothing is set.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[BOUND=]NUMBER",
            help=f"{', '.join(TENANT_BOUNDS)}; the first unless named. 0: no limit; `default`: give it back.",
        ),
    ] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="ID", help="One key; without any: every key.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="ID", help="One tenant, over all its keys.")] = None,
    every_tenant: Annotated[bool, typer.Option("--every-tenant", help="Every tenant, each by itself.")] = False,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show or change how many requests and tokens a key or a tenant may use up. Takes effect within a second."""
    if (key is not None) + (tenant is not None) + every_tenant > 1:
        raise typer.BadParameter("give one of --key, --tenant and --every-tenant")
    if get and set_:
        raise typer.BadParameter("--get changes nothing: leave it out, or the --set options")
    if not set_ and (key or tenant or every_tenant or dry_run):
        raise typer.BadParameter("say what to change: --set NUMBER, or --set NAME=NUMBER")
    bounds = TENANT_BOUNDS if tenant is not None or every_tenant else KEY_BOUNDS
    changes = dict(_bound(text, bounds) for text in set_ or ())
    with connect(url, api_key) as client:
        if changes:
            answer = client.put(dry(PATH, dry_run), _body(changes, key, tenant, every_tenant=every_tenant))
        else:
            answer = client.get(PATH)
    if as_json:
        print_json(answer)
        return
    _print(answer)
    if dry_run:
        note("dry run: nothing was changed")


def _body(changes: dict[str, int | None], key: str | None, tenant: str | None, *, every_tenant: bool) -> dict[str, Any]:
    if key is not None:
        return {"keys": {key: changes}}
    if tenant is not None:
        return {"tenants": {tenant: changes}}
    return {"tenant" if every_tenant else "key": changes}


def _bound(text: str, bounds: tuple[str, ...]) -> tuple[str, int | None]:
    name, equals, value = text.rpartition("=")
    name = name.replace("-", "_") if equals else bounds[0]
    if name in bounds and (value == GIVE_BACK or value.isdecimal()):
        return name, None if value == GIVE_BACK else int(value)
    raise typer.BadParameter(f"--set {text!r}: write it as NUMBER or NAME=NUMBER with one of {', '.join(bounds)}")


def _print(answer: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("", "name", *(bound.replace("_", " ") for bound in TENANT_BOUNDS), box=None, pad_edge=False)
    rows = [("key", "every other", answer["key"]), ("tenant", "every other", answer["tenant"])]
    rows += [("key", name, limit) for name, limit in sorted(answer["keys"].items())]
    rows += [("tenant", name, limit) for name, limit in sorted(answer["tenants"].items())]
    for kind, name, limit in rows:
        table.add_row(
            kind, cell(name), *("-" if limit.get(bound) is None else f"{limit[bound]}" for bound in TENANT_BOUNDS)
        )
    table_console().print(table)
