"""`inferctl models`: what the server can be asked for."""

from __future__ import annotations

from typing import Any

from .options import DEFAULT_URL, ApiKey, Json, Url, connect, print_json
from .terminal import table_console


def models(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the models that the server offers."""
    with connect(url, api_key) as client:
        answer = client.get("/v1/models")
    if as_json:
        print_json(answer)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("model", "backend", "default", "workers", "context", "note", box=None, pad_edge=False)
    for model in answer["data"]:
        note = f"made-up text: {model.get('stub_reason') or 'this is a stub'}" if is_stub(model) else ""
        table.add_row(
            Text(str(model["id"])),
            Text(str(model.get("backend", "")), "bold red" if is_stub(model) else ""),
            "yes" if model.get("default") else "",
            str(model.get("num_workers", "")),
            str(model.get("context_length") or ""),
            Text(note, "bold red"),
        )
    table_console().print(table)


def pick_default(offered: list[dict[str, Any]]) -> dict[str, Any]:
    """The model that is marked as the default, else the first."""
    return next((model for model in offered if model.get("default")), offered[0])


def is_stub(model: dict[str, Any]) -> bool:
    """True for a model that answers with made-up text."""
    return bool(model.get("stub"))
