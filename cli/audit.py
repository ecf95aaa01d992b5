"""`inferctl audit`: whether an audit log is what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from inferflux.config.chain import Finding, Head, Verifier

from .errors import CommandFailed
from .options import ApiKey, Json, connect, print_json
from .terminal import cell, table_console

PATH = "/v1/admin/audit"

app = typer.Typer(help="Check the audit log.", no_args_is_help=True)


@app.callback()
def audit() -> None:
    """Check the audit log."""


@app.command()
def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="From the oldest to the newest.")],
    url: Annotated[
        str | None, typer.Option("--url", help="A server to ask for the anchored heads: finds a cut tail too.")
    ] = None,
    api_key: ApiKey = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="The oldest files are gone: a chain may begin late.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find lines of an audit log that were changed, removed, doubled or moved. Exits with 1 when there are any."""
    anchors = [] if url is None else _anchors(url, api_key)
    verifier = Verifier(partial=partial)
    findings: list[Finding] = []
    for file in files:
        try:
            with file.open("rb") as lines:
                findings += verifier.read(str(file), lines, anchors)
        except OSError as error:
            raise CommandFailed(f"{file} cannot be read: {error.strerror or error}") from None
    findings += verifier.close(anchors)
    if as_json:
        answer = {"num_lines": verifier.num_lines, "num_chains": verifier.num_chains, "num_anchors": len(anchors)}
        print_json(answer | {"findings": msgspec.to_builtins(findings)})
    else:
        _print(findings, verifier, anchored=url is not None)
    if findings:
        raise typer.Exit(1)


def _anchors(url: str, api_key: str | None) -> list[Head]:
    """Asked before the files are read, so that whatever is anchored has been written."""
    with connect(url, api_key) as client:
        return msgspec.convert(client.get(PATH)["data"], list[Head])


def _print(findings: list[Finding], verifier: Verifier, *, anchored: bool) -> None:
    from rich.table import Table

    console = table_console()
    if findings:
        table = Table("file", "line", "problem", box=None, pad_edge=False)
        for each in findings:
            table.add_row(cell(each.file or "-"), str(each.line or "-"), cell(each.problem))
        console.print(table)
    read = f"{verifier.num_lines} lines of {verifier.num_chains} processes"
    console.print(f"{len(findings)} problems in {read}" if findings else f"{read} are as they were written")
    if not anchored:
        console.print("without --url, a tail that was cut off is not found")
