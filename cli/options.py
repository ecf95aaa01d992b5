"""Options that several commands share, and what they make."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .client import Client

Url = Annotated[
    str, typer.Option("--url", envvar="INFERCTL_URL", help="The server's address; replicas are separated by commas.")
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="INFERCTL_API_KEY", help="The key to call it with.", show_envvar=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file; config/server.yaml, or the shipped one, unless given."),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting.")]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]

DEFAULT_URL = "http://127.0.0.1:8080"


def connect(url: str, api_key: str | None) -> Client:
    """A client for one server."""
    # httpx is half of the start-up time of commands that need no server.
    from .client import Client

    return Client(url, api_key)


def dry(path: str, dry_run: bool) -> str:
    """The path of a change, or of its dry run."""
    return f"{path}?dry_run=true" if dry_run else path


def print_json(value: Any) -> None:
    """One JSON document on one line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()
