"""`inferctl admin routing` and `scheduler`: under which names and where a model is served, and how much at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .options import DEFAULT_URL, ApiKey, DryRun, Json, Url, connect, dry, print_json
from .terminal import cell, note, table_console

ROUTING = "/v1/admin/routing"
SCHEDULER = "/v1/admin/scheduler"
GIVE_BACK = "default"
BOUNDS = ("max_batch_size", "max_batch_tokens", "chunked_prefill_tokens")

Model = Annotated[str | None, typer.Option("--model", metavar="ID", help="The model to change.")]


def routing(
    model: Model = None,
    aliases: Annotated[
        list[str] | None,
        typer.Option("--alias", help="Another name, in place of those there are; `default`: the file's."),
    ] = None,
    no_aliases: Annotated[bool, typer.Option("--no-aliases", help="No other names.")] = False,
    hardware: Annotated[
        str | None, typer.Option("--hardware", help="Workers that load it: any, cpu or gpu; `default`: the file's.")
    ] = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show or change models' other names, and which class of workers loads them."""
    changes: dict[str, Any] = {}
    if aliases or no_aliases:
        changes["aliases"] = None if aliases == [GIVE_BACK] else aliases or []
    if hardware is not None:
        changes["hardware"] = None if hardware == GIVE_BACK else hardware
    columns = ("model", "aliases", "hardware", "default", "changed")
    _call(ROUTING, columns, model, changes, dry_run=dry_run, url=url, api_key=api_key, as_json=as_json)


def scheduler(
    model: Model = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="BOUND=NUMBER", help=f"{', '.join(BOUNDS)}; `default` gives back."),
    ] = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show or change the bounds of a model's engine steps while it serves."""
    changes = dict(_bound(text) for text in set_ or ())
    columns = ("model", *BOUNDS, "changed")
    _call(SCHEDULER, columns, model, changes, dry_run=dry_run, url=url, api_key=api_key, as_json=as_json)


def _bound(text: str) -> tuple[str, int | None]:
    name, _, value = text.partition("=")
    if name in BOUNDS and (value == GIVE_BACK or value.isdecimal()):
        return name, None if value == GIVE_BACK else int(value)
    raise typer.BadParameter(f"--set {text!r}: write it as NAME=NUMBER with one of {', '.join(BOUNDS)}")


def _call(
    path: str,
    columns: Sequence[str],
    model: str | None,
    changes: dict[str, Any],
    *,
    dry_run: bool,
    url: str,
    api_key: str | None,
    as_json: bool,
) -> None:
    if bool(changes) != (model is not None):
        raise typer.BadParameter("name the model and what to change of it: --model ID and another option")
    with connect(url, api_key) as client:
        answer = client.put(dry(path, dry_run), {"model": model, **changes}) if changes else client.get(path)
    if as_json:
        print_json(answer)
        return
    from rich.table import Table

    table = Table(*(column.replace("_", " ") for column in columns), box=None, pad_edge=False)
    for row in answer["data"]:
        table.add_row(*(cell(_shown(row[column])) for column in columns))
    table_console().print(table)
    if dry_run:
        note("dry run: nothing was changed")


def _shown(value: Any) -> str:
    match value:
        case list():
            return ", ".join(map(str, value))
        case bool():
            return "yes" if value else ""
        case _:
            return str(value)
