"""`inferctl admin`: change a running fleet."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import queue
from .admin_cache import cache
from .admin_guardrails import guardrails
from .admin_keys import api_keys
from .admin_limits import rate_limit
from .admin_models import models
from .admin_policy import app as policy
from .admin_routing import routing, scheduler
from .admin_tenants import tenants
from .admin_usage import usage
from .fleet import fleet
from .options import DEFAULT_URL, ApiKey, DryRun, Json, Url, connect, dry, print_json
from .terminal import cell, note, table_console

PATH = "/v1/admin/fairness"
GIVE_BACK = "default"

app = typer.Typer(help="Change a running fleet.", no_args_is_help=True)
app.add_typer(policy, name="policy")
app.command("api-keys")(api_keys)
app.command("api_keys", hidden=True)(api_keys)
app.command()(tenants)
for command in (models, guardrails, routing, scheduler, cache):
    app.command()(command)
app.command("workers")(fleet)
app.add_typer(queue.app, name="queue")
app.command("rate-limit")(rate_limit)
app.command("rate_limit", hidden=True)(rate_limit)
app.command()(usage)

Weights = Annotated[
    list[str] | None,
    typer.Option("--set-weight", metavar="TENANT=WEIGHT", help="`default` gives it back to the settings."),
]
Shares = Annotated[
    list[str] | None,
    typer.Option("--set-share", metavar="CLASS=SHARE", help="Least share of `default` or `batch`, 0 to 1."),
]


@app.callback()
def admin() -> None:
    """Change a running fleet. Needs a key with the scope `admin`."""


@app.command()
def fairness(
    get: Annotated[bool, typer.Option("--get", help="Only show; also when nothing is set.")] = False,
    set_weight: Weights = None,
    set_share: Shares = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show or change tenants' weights and the classes' least shares. Workers follow within about a second."""
    if get and (set_weight or set_share):
        raise typer.BadParameter("--get changes nothing: leave it out, or the --set options")
    changes = {
        "weights": dict(_assignment(text, "--set-weight") for text in set_weight or ()),
        "min_share": dict(_assignment(text, "--set-share") for text in set_share or ()),
    }
    with connect(url, api_key) as client:
        answer = client.put(dry(PATH, dry_run), changes) if any(changes.values()) else client.get(PATH)
    if as_json:
        print_json(answer)
    else:
        _print(answer)
        if dry_run:
            note("dry run: nothing was changed")


def _assignment(text: str, option: str) -> tuple[str, float | None]:
    name, equals, value = text.rpartition("=")
    if equals and name and value == GIVE_BACK:
        return name, None
    try:
        if equals and name:
            return name, float(value)
    except ValueError:
        pass
    raise typer.BadParameter(f"{option} {text!r}: write it as NAME=NUMBER, or NAME={GIVE_BACK}")


def _print(answer: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("", "name", "value", "from", box=None, pad_edge=False)
    for title, key in (("weight", "weights"), ("least share", "min_share")):
        for name, value in sorted(answer[key].items()):
            changed = name in answer["changed"][key]
            table.add_row(title, cell(name), f"{value:g}", "changed while running" if changed else "settings")
    console = table_console()
    console.print(table)
    console.print("every other tenant has the weight 1")
