"""`inferctl fleet`: every worker and model, as of their last heartbeats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .options import DEFAULT_URL, ApiKey, Json, Url, connect, print_json
from .terminal import cell, table_console

if TYPE_CHECKING:
    from rich.table import Table

NO_WORKER = "no worker is there: start one with `inferctl worker`"


def fleet(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show workers and their models: state, slots, pages, tokens/s, heartbeats. Needs the scope `admin`."""
    with connect(url, api_key) as client:
        workers = client.get("/v1/admin/workers")["data"]
    if as_json:
        print_json(workers)
        return
    console = table_console()
    console.print(fleet_table(workers) if workers else NO_WORKER)


def fleet_table(workers: Iterable[Mapping[str, Any]]) -> Table:
    """One row for each model of each worker; a worker without models has a row too."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("worker", "host", "model", "backend", "state"):
        table.add_column(name)
    for name in ("slots free", "running", "waiting", "pages used", "tokens/s", "heartbeat"):
        table.add_column(name, justify="right")
    for worker in workers:
        for model in worker["models"] or [None]:
            cells = _model(worker, model) if model is not None else ["-"] * 8
            table.add_row(cell(worker["worker"]), cell(worker["host"]), *cells, f"{worker['age_s']:.1f} s ago")
    return table


def _model(worker: Mapping[str, Any], model: Mapping[str, Any]) -> list[Any]:
    state = "draining" if worker["draining"] else model["state"]
    return [
        cell(model["id"]),
        cell(f"{model['backend']} ({model['hardware']})"),
        cell(f"{state}: {model['reason']}" if model["reason"] else state),
        f"{model['num_free_slots']}/{model['num_slots']}",
        str(model["num_running"]),
        str(model["num_waiting"]),
        f"{model['num_pages_used']}/{model['num_pages']}",
        f"{model['tokens_per_s']:.1f}",
    ]
