"""`inferctl queue`: what waits and runs, and an end to one request of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from . import dead
from .options import DEFAULT_URL, ApiKey, DryRun, Json, Url, connect, dry, print_json
from .terminal import cell, note, table_console

if TYPE_CHECKING:
    from rich.table import Table

EMPTY = "nothing is queued"

app = typer.Typer(help="Show what waits and runs; cancel requests; look after dead letters.", no_args_is_help=False)
app.add_typer(dead.app, name="dead")


@app.callback(invoke_without_command=True)
def queue(context: typer.Context, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show what waits and runs, by model, class and tenant, and the age of the oldest. Needs the scope `admin`."""
    if context.invoked_subcommand is not None:
        return
    with connect(url, api_key) as client:
        lanes = client.get("/v1/admin/queue")["data"]
    if as_json:
        print_json(lanes)
        return
    table_console().print(queue_table(lanes) if lanes else EMPTY)


@app.command()
def cancel(
    requests: Annotated[list[str], typer.Argument(metavar="ID...", help="As the API gave it, or t-TENANT.REQUEST.")],
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Cancel requests, queued or running."""
    with connect(url, api_key) as client:
        for request in requests:
            answer = client.delete(dry(f"/v1/admin/requests/{quote(request, safe='')}", dry_run))
            if as_json:
                print_json(answer)
            else:
                cancelled = "would be cancelled" if dry_run else "cancelled"
                note(f"{request}: {cancelled if answer['state'] == 'cancelled' else 'had ended already'}")


def queue_table(lanes: Iterable[Mapping[str, Any]]) -> Table:
    """One row for each lane."""
    from rich.table import Table

    table = Table("model", "class", "tenant", box=None, pad_edge=False)
    for name in ("waiting", "running", "oldest"):
        table.add_column(name, justify="right")
    for lane in lanes:
        age_s = lane["oldest_age_s"]
        table.add_row(
            cell(lane["model"]),
            cell(lane["service_class"]),
            cell(lane["tenant"]),
            str(lane["num_waiting"]),
            str(lane["num_running"]),
            "-" if age_s is None else duration(age_s),
        )
    return table


def duration(seconds: float) -> str:
    """As people say it: `3.2 s`, `4 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
