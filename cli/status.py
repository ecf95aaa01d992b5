"""`inferctl status`: processes, models and queues of a running server."""

from __future__ import annotations

from typing import Any

from .options import DEFAULT_URL, ApiKey, Json, Url, connect, print_json
from .overview import overview
from .queue import EMPTY, queue_table
from .terminal import cell, table_console


def status(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show processes with their resident memory, models and queues. Needs a key with the scope `admin`."""
    with connect(url, api_key) as client:
        answer = overview(client)
    if as_json:
        print_json(answer)
    else:
        _print(url, answer)


def _print(url: str, answer: dict[str, Any]) -> None:
    from rich.table import Table

    console = table_console()
    api, workers = answer["api"], answer["workers"]
    console.print(f"{url}: {'ready' if answer['ready'] else 'not ready'}")
    processes = Table("process", "pid", "memory", "model", "KV", "state", box=None, pad_edge=False)
    processes.add_row(f"api {api['replica']}", str(api["pid"]), _megabytes(api["rss_bytes"]), "", "", "")
    models = Table("model", "backend", "state", "slots free", "running", "waiting", "pages used", "tokens/s", box=None)
    models.pad_edge = False
    for worker in workers:
        sizes = (_megabytes(worker[name]) for name in ("rss_bytes", "model_bytes", "kv_bytes"))
        draining = "draining" if worker["draining"] else "serving"
        processes.add_row(cell(f"worker {worker['worker']}"), str(worker["pid"]), *sizes, draining)
        for model in worker["models"]:
            models.add_row(
                cell(model["id"]),
                cell(model["backend"]),
                cell(model["state"] if not model.get("reason") else f"{model['state']}: {model['reason']}"),
                f"{model['num_free_slots']}/{model['num_slots']}",
                str(model["num_running"]),
                str(model["num_waiting"]),
                f"{model['num_pages_used']}/{model['num_pages']}",
                f"{model['tokens_per_s']:.1f}",
            )
    console.print(processes)
    console.print(models if models.row_count else "no worker is there: start one with `inferctl worker`")
    console.print(queue_table(answer["queue"]) if answer["queue"] else EMPTY)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes else "-"
