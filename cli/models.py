"""`inferctl models`: what the server can be asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import CommandFailed
from .options import DEFAULT_URL, ApiKey, Json, Url, connect, print_json
from .terminal import table_console

if TYPE_CHECKING:
    from .client import Client


def models(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the models that the server offers."""
    with connect(url, api_key) as client:
        answer = client.get("/v1/models")
    if as_json:
        print_json(answer)
        return
    from rich.table import Table

    table = Table("model", "backend", "default", "workers", box=None, pad_edge=False)
    for model in answer["data"]:
        backend = "[bold red]stub (made-up text)[/]" if is_stub(model) else str(model.get("backend", ""))
        table.add_row(str(model["id"]), backend, "yes" if model.get("default") else "", str(model.get("workers", "")))
    table_console().print(table)


def default_model(client: Client) -> str:
    """The id of the server's default model."""
    offered = client.get("/v1/models")["data"]
    if not offered:
        raise CommandFailed("the server has no model: add one to its registry, or start it with --model FILE")
    return str(pick_default(offered)["id"])


def pick_default(offered: list[dict[str, Any]]) -> dict[str, Any]:
    """The model that is marked as the default, else the first."""
    return next((model for model in offered if model.get("default")), offered[0])


def is_stub(model: dict[str, Any]) -> bool:
    """True for a model that answers with made-up text."""
    return bool(model.get("stub")) or model.get("backend") == "stub"
