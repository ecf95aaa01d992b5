"""`inferctl admin cache`: the prefix caches of all workers, to see, to clear and to fill beforehand."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from .options import DEFAULT_URL, ApiKey, DryRun, Json, Url, connect, print_json
from .terminal import cell, note, table_console

PATH = "/v1/admin/cache"


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Have all workers forget every prefix.")] = False,
    warm: Annotated[
        str | None,
        typer.Option("--warm", metavar="TEXT", help="Have workers compute how prompts begin, now and later."),
    ] = None,
    warm_system: Annotated[
        str | None, typer.Option("--warm-system", metavar="TEXT", help="The same for chats with this system message.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Of this model; --clear: of all unless given.")] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Whose prompts begin so; the key's own tenant.")
    ] = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show every worker's prefix cache, or clear and fill them."""
    if sum((clear, warm is not None, warm_system is not None)) > 1:
        raise typer.BadParameter("say one of --clear, --warm TEXT and --warm-system TEXT")
    with connect(url, api_key) as client:
        if clear:
            answer = client.delete(_query(PATH, model=model, dry_run=dry_run))
        elif warm is not None or warm_system is not None:
            body: dict[str, Any] = {"model": model, "tenant": tenant}
            if warm_system is not None:
                body["messages"] = [{"role": "system", "content": warm_system}]
            else:
                body["prompt"] = warm
            answer = client.post(_query(f"{PATH}/warm", dry_run=dry_run), body)
        else:
            answer = client.get(PATH)
    if as_json:
        print_json(answer)
    else:
        _show(answer, dry_run)


def _query(path: str, *, model: str | None = None, dry_run: bool) -> str:
    given = {"model": model, "dry_run": "true" if dry_run else None}
    query = urlencode({name: value for name, value in given.items() if value is not None})
    return f"{path}?{query}" if query else path


def _show(answer: dict[str, Any], dry_run: bool) -> None:
    from rich.table import Table

    table = Table("worker", "model", box=None, pad_edge=False)
    for name in ("pages", "used", "cached", "tokens looked up", "found", "warm"):
        table.add_column(name, justify="right")
    for each in answer["workers"]:
        numbers = ("num_pages", "num_pages_used", "num_pages_cached", "prefix_queries", "prefix_hits")
        table.add_row(
            cell(each["worker"]), cell(each["model"]), *(str(each[name]) for name in numbers), str(len(each["warm"]))
        )
    console = table_console()
    console.print(table)
    for each in answer["warm"]:
        console.print(
            cell(
                f"kept warm: {each['id']}, {each['num_chars']} characters for {each['model']} and tenant "
                f"{each['tenant']}, computed by {each['num_workers']} workers"
            )
        )
    if dry_run:
        note("dry run: nothing was changed")
