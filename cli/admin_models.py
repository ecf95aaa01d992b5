"""`inferctl admin models`: what is served, from which file, in what state, and what is done to it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from .errors import CommandFailed
from .options import DEFAULT_URL, ApiKey, DryRun, Json, Url, connect, dry, print_json
from .terminal import cell, note, table_console

if TYPE_CHECKING:
    from .client import Client

PATH = "/v1/admin/models"
GIVE_BACK = "default"
POLL_S = 0.3

Name = str | None


def models(
    list_: Annotated[bool, typer.Option("--list", help="Show every model; also when nothing else is asked.")] = False,
    load: Annotated[
        Name, typer.Option("--load", metavar="PATH", help="Load this model; needs --id. `stub` is no file.")
    ] = None,
    unload: Annotated[Name, typer.Option("--unload", metavar="ID", help="Take away what --load brought.")] = None,
    reload: Annotated[Name, typer.Option("--reload", metavar="ID", help="Load it once more from its file.")] = None,
    set_default: Annotated[
        Name, typer.Option("--set-default", metavar="ID", help="`default` gives the choice back to the registry file.")
    ] = None,
    model_id: Annotated[Name, typer.Option("--id", help="The id that --load serves it under.")] = None,
    default: Annotated[bool, typer.Option("--default", help="With --load: for requests that name no model.")] = False,
    backend: Annotated[str, typer.Option("--backend", help="With --load: auto, llamacpp, torch or stub.")] = "auto",
    aliases: Annotated[list[str] | None, typer.Option("--alias", help="With --load: another name.")] = None,
    hardware: Annotated[
        str, typer.Option("--hardware", help="With --load: the class of workers that load it: any, cpu or gpu.")
    ] = "any",
    context_length: Annotated[int | None, typer.Option("--context-length", min=1, help="With --load.")] = None,
    max_batch_size: Annotated[int | None, typer.Option("--max-batch-size", min=1, help="With --load.")] = None,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="Wait for workers at most so long; fails where they do.")
    ] = 0.0,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show, load and unload models while the fleet runs. Workers follow at once."""
    if sum((list_, *(each is not None for each in (load, unload, reload, set_default)))) > 1:
        raise typer.BadParameter("say one of --list, --load PATH, --unload ID, --reload ID and --set-default ID")
    if (load is None) != (model_id is None):
        raise typer.BadParameter("--load PATH and --id ID go together")
    with connect(url, api_key) as client:
        if load is not None:
            body = {
                "id": model_id,
                "path": None if load == "stub" else _path(load, url),
                "backend": "stub" if load == "stub" else backend,
                "default": default,
                "aliases": aliases or [],
                "hardware": hardware,
                "context_length": context_length,
                "max_batch_size": max_batch_size,
            }
            answer = client.post(dry(PATH, dry_run), body)
        elif unload is not None:
            answer = client.delete(dry(f"{PATH}/{quote(unload)}", dry_run))
        elif reload is not None:
            answer = client.post(dry(f"{PATH}/reload", dry_run), {"id": reload})
        elif set_default is not None:
            chosen = None if set_default == GIVE_BACK else set_default
            client.put(dry(f"{PATH}/default", dry_run), {"id": chosen})
            answer = client.get(PATH)
        else:
            answer = client.get(PATH)
        if wait and not dry_run:
            answer = _settled(client, model_id or unload or reload, wait)
    if as_json:
        print_json(answer)
    else:
        _show(answer, dry_run)


def _path(path: str, url: str) -> str:
    """A file here is meant where the server is here too; other names are the server's own."""
    from .launch import is_loopback

    here = Path(path).expanduser()
    host = urlsplit(url).hostname or ""
    return str(here.absolute()) if is_loopback(host) and here.exists() else path


def _settled(client: Client, name: str | None, timeout_s: float) -> dict[str, Any]:
    """The registry once every worker follows it. Raises CommandFailed for what failed or takes too long."""
    until_s = time.monotonic() + timeout_s
    while True:
        answer = client.get(PATH)
        left = [model for model in answer["data"] if name in (None, model["id"], *model["aliases"]) and _moves(model)]
        if not left:
            break
        if time.monotonic() > until_s:
            raise CommandFailed(f"not in {timeout_s:g} s: {', '.join(model['id'] for model in left)}; look at --list")
        time.sleep(POLL_S)
    for model in answer["data"]:
        failed = next((worker for worker in model["workers"] if worker["state"] == "failed"), None)
        if failed is not None and name in (None, model["id"], *model["aliases"]):
            raise CommandFailed(f"{model['id']} failed on {failed['worker']}: {failed['reason']}")
    return answer


def _moves(model: dict[str, Any]) -> bool:
    """Whether a worker has yet to do what the registry says."""
    if model["owner"] is None:
        return True
    done = [worker["current"] and worker["state"] in ("ready", "failed") for worker in model["workers"]]
    return not done or not all(done)


def _show(answer: dict[str, Any], dry_run: bool) -> None:
    from rich.table import Table

    table = Table(
        "model", "state", "workers", "backend", "default", "aliases", "owner", "file", box=None, pad_edge=False
    )
    for model in answer["data"]:
        ready = sum(worker["state"] == "ready" for worker in model["workers"])
        table.add_row(
            cell(model["id"]),
            cell(_state(model)),
            f"{ready}/{len(model['workers'])}",
            cell(_backend(model)),
            "yes" if model["default"] else "",
            cell(", ".join(model["aliases"])),
            {"admin": "operators", "file": "registry file", None: "nobody any more"}[model["owner"]],
            cell(model["path"] or ""),
        )
    table_console().print(table)
    file = answer["file"]
    if file["error"] is not None:
        note(f"the registry file was refused: {file['error']}")
    elif file["conflict"] is not None:
        note(f"{file['path']} is not in force: that of replica {file['conflict']} is, and differs")
    if dry_run:
        note("dry run: nothing was changed")


def _state(model: dict[str, Any]) -> str:
    for worker in model["workers"]:
        if worker["reason"] is not None:
            return f"{model['state']}; on {worker['worker']}: {worker['reason']}"
    loading = [worker["progress"] for worker in model["workers"] if worker["progress"] < 1]
    if loading:
        return f"{model['state']}, loading {100 * min(loading):.0f} %"
    return str(model["state"])


def _backend(model: dict[str, Any]) -> str:
    backends = {worker["backend"] for worker in model["workers"] if worker["state"] == "ready"}
    shown = ", ".join(sorted(backends)) or model["backend"] or ""
    return f"{shown} (made-up text: {model['stub_reason']})" if shown == "stub" and model["stub_reason"] else shown
