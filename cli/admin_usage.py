"""`inferctl admin usage`: what each tenant, key and model was served."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from .options import DEFAULT_URL, ApiKey, Json, Url, connect, print_json
from .terminal import cell, table_console

PATH = "/v1/admin/usage"
COLUMNS = ("period", "tenant", "key", "model", "requests", "prompt_tokens", "cached_tokens", "completion_tokens")


def usage(
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="ID", help="Only of this tenant.")] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="ID", help="Only of this key.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="ID", help="Only of this model.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="YYYY-MM-DD", help="From this day on (UTC).")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="YYYY-MM-DD", help="To the end of this day.")] = None,
    by: Annotated[str, typer.Option("--by", metavar="day|month", help="One row for each of these.")] = "day",
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show requests and tokens by tenant, key and model, and what is used up of this month's budgets."""
    asked = {"tenant": tenant, "key": key, "model": model, "since": since, "until": until, "by": by}
    with connect(url, api_key) as client:
        answer = client.get(f"{PATH}?{urlencode({name: value for name, value in asked.items() if value is not None})}")
    if as_json:
        print_json(answer)
    else:
        _print(answer)


def _print(answer: dict[str, Any]) -> None:
    from rich.table import Table

    console = table_console()
    table = Table(*(column.replace("_", " ") for column in COLUMNS), box=None, pad_edge=False)
    for row in answer["data"]:
        table.add_row(*(cell(str(row[column])) for column in COLUMNS))
    table.add_row("total", "", "", "", *(str(answer["total"][column]) for column in COLUMNS[4:]))
    console.print(table)
    for budget in answer["budgets"]:
        limit = "and no budget any more" if budget["limit"] is None else f"of {budget['limit']}"
        console.print(cell(f"{budget['tenant']} in {budget['month']}: {budget['tokens']} tokens {limit}"))
