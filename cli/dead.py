"""`inferctl queue dead`: requests that were given up, to look at, retry and drop."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from .errors import CommandFailed
from .options import DEFAULT_URL, ApiKey, DryRun, Json, Url, connect, dry, print_json
from .terminal import cell, note, table_console, write

if TYPE_CHECKING:
    from .client import Client

PATH = "/v1/admin/queue/dead"
NONE = "no request was given up"

Letters = Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="As `inferctl queue dead list` shows it.")]
All = Annotated[bool, typer.Option("--all", help="Every dead letter there is.")]

app = typer.Typer(help="Look at requests that were given up, retry and drop them.", no_args_is_help=True)


@app.command("list")
def list_letters(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List dead letters, oldest first, without their prompts."""
    with connect(url, api_key) as client:
        letters = client.get(PATH)["data"]
    if as_json:
        print_json(letters)
        return
    if not letters:
        note(NONE)
        return
    from rich.table import Table

    table = Table("id", "model", "class", "tenant", "given up", "workers lost", "reason", box=None, pad_edge=False)
    for letter in letters:
        workers = [attempt["worker"] for attempt in letter["attempts"] if attempt["state"] == "running"]
        names = (letter[name] for name in ("id", "model", "service_class", "tenant"))
        given_up = datetime.fromtimestamp(letter["at"], UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        table.add_row(*map(cell, names), given_up, cell(", ".join(workers)), cell(letter["code"]))
    table_console().print(table)


@app.command()
def show(
    letter: Annotated[str, typer.Argument(metavar="ID")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show one dead letter with its prompt."""
    with connect(url, api_key) as client:
        answer = client.get(_path(letter))
    if as_json:
        print_json(answer)
    else:
        write(json.dumps(answer, ensure_ascii=False, indent=2) + "\n")


@app.command()
def retry(
    letters: Letters = None,
    all_: All = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Run prompts again as new requests, wait, and print the answers. What was answered is no dead letter any more."""

    def run(client: Client, letter: str) -> None:
        answer = client.post(_path(letter) + "/retry", {})
        if as_json:
            print_json(answer)
            return
        note(f"{letter}: answered as {answer['request']}, {answer['usage']['completion_tokens']} tokens")
        for choice in answer["choices"]:
            write(choice["text"] + "\n")

    _each(letters, all_, url, api_key, run)


@app.command()
def drop(
    letters: Letters = None,
    all_: All = False,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Forget dead letters, and the prompts in them."""

    def run(client: Client, letter: str) -> None:
        answer = client.delete(dry(_path(letter), dry_run))
        if as_json:
            print_json(answer)
        else:
            note(f"{letter}: {'would be dropped' if dry_run else 'dropped'}")

    _each(letters, all_, url, api_key, run)


def _each(
    letters: list[str] | None, all_: bool, url: str, api_key: str | None, run: Callable[[Client, str], None]
) -> None:
    """One after the other; what fails is said, and fails the command when all were tried."""
    if bool(letters) == all_:
        raise typer.BadParameter("name dead letters, or say --all")
    with connect(url, api_key) as client:
        chosen: list[Any] = letters or [letter["id"] for letter in client.get(PATH)["data"]]
        if not chosen:
            note(NONE)
        num_failed = 0
        for letter in chosen:
            try:
                run(client, letter)
            except CommandFailed as error:
                if len(chosen) == 1:
                    raise
                num_failed += 1
                note(f"{letter}: {error}")
    if num_failed:
        raise CommandFailed(f"{num_failed} of {len(chosen)} dead letters are as they were")


def _path(letter: str) -> str:
    return f"{PATH}/{quote(letter, safe='')}"
