"""`inferctl batch`: files of requests that run when there is room."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from . import jobs
from .errors import CommandFailed
from .options import DEFAULT_URL, ApiKey, Json, Url, connect, print_json
from .terminal import cell, note, read_prompt, table_console

if TYPE_CHECKING:
    from .client import Client

MAX_LINES = 50_000
MAX_LINE_BYTES = 4 * 1024 * 1024

File = Annotated[Path, typer.Argument(metavar="FILE", help="One request as JSON on each line, as OpenAI has them.")]
Ident = Annotated[str, typer.Argument(metavar="ID", help="As `submit` printed it.")]
Model = Annotated[str | None, typer.Option("--model", help="Model for every line, whatever the lines say.")]
Window = Annotated[str, typer.Option("--window", help="Time that the batch may take, such as 24h or 30m.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where the answers go; - is stdout.")]

app = typer.Typer(help="Have files of requests answered when there is room.", no_args_is_help=True)


@app.command()
def submit(
    file: File,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress until it has ended.")] = False,
    model: Model = None,
    window: Window = "24h",
    metadata: Annotated[list[str] | None, typer.Option("--metadata", metavar="NAME=VALUE")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Upload FILE and have its lines answered; prints the batch's id."""
    pairs = dict(_pair(each) for each in metadata or ())
    endpoint = jobs.endpoint_of(file)
    if endpoint is None:
        raise CommandFailed(f"{file}: its first line is no request; `inferctl batch validate {file}` says why")
    with connect(url, api_key) as client, jobs.with_model(file, model) as path:
        batch = jobs.submit(client, path, endpoint, window, pairs)
        if wait:
            batch = _watched(client, batch["id"])
    if as_json:
        print_json(batch)
    else:
        sys.stdout.write(batch["id"] + "\n")
    if wait:
        jobs.check_ended_well(batch)


@app.command("list")
def list_batches(
    limit: Annotated[int, typer.Option("--limit", min=1, max=100)] = 20,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List batches, newest first."""
    with connect(url, api_key) as client:
        batches = client.get(f"{jobs.BATCHES}?limit={limit}")["data"]
    if as_json:
        print_json(batches)
        return
    if not batches:
        note("there are no batches")
        return
    from rich.table import Table

    table = Table("id", "status", "model", "created", box=None, pad_edge=False)
    for name in ("lines", "completed", "failed"):
        table.add_column(name, justify="right")
    for batch in batches:
        counts = batch["request_counts"]
        created = datetime.fromtimestamp(batch["created_at"], UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        figures = (str(counts[name]) for name in ("total", "completed", "failed"))
        table.add_row(cell(batch["id"]), cell(batch["status"]), cell(batch["model"] or "-"), created, *figures)
    table_console().print(table)


@app.command()
def show(ident: Ident, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show one batch, with what is wrong with its file."""
    with connect(url, api_key) as client:
        batch = jobs.show(client, ident)
    if as_json:
        print_json(batch)
        return
    from rich.table import Table

    table = Table("", "", box=None, pad_edge=False, show_header=False)
    for name in ("id", "status", "endpoint", "model", "input_file_id", "output_file_id", "error_file_id"):
        table.add_row(name, cell(batch[name] or "-"))
    counts = batch["request_counts"]
    table.add_row("lines", f"{counts['total']}, {counts['completed']} completed, {counts['failed']} failed")
    table.add_row("tokens", f"{batch['usage']['input_tokens']} in, {batch['usage']['output_tokens']} out")
    table_console().print(table)
    for problem in (batch["errors"] or {"data": []})["data"]:
        note(f"{jobs.place(problem)}{problem['message']} [{problem['code']}]")


@app.command()
def cancel(ident: Ident, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Stop a batch; what is answered by then stays."""
    with connect(url, api_key) as client:
        batch = client.post(f"{jobs.BATCHES}/{quote(ident, safe='')}/cancel", {})
    if as_json:
        print_json(batch)
    else:
        note(f"{ident}: {batch['status']}")


@app.command()
def results(
    ident: Ident,
    output: Output = Path("-"),
    errors: Annotated[Path | None, typer.Option("--errors", help="Where lines that failed go.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Fetch a batch's answers, one line of JSON each."""
    with connect(url, api_key) as client:
        batch = jobs.show(client, ident)
        if batch["status"] not in jobs.OVER:
            raise CommandFailed(
                f"batch {ident} is {batch['status']}: `inferctl batch show {ident}` tells how far it is"
            )
        _fetched(client, batch["output_file_id"], output)
        if errors is not None:
            _fetched(client, batch["error_file_id"], errors)
    num_failed = batch["request_counts"]["failed"]
    if num_failed and errors is None:
        note(f"{num_failed} lines failed: --errors FILE fetches them")


@app.command()
def validate(
    file: File,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="The first line's unless given.")] = None,
    as_json: Json = False,
) -> None:
    """Look through FILE as a server would, without one: what it cannot tell is whether the model exists."""
    # The API's modules are not needed by any other command.
    from inferflux.api.batches.splitter import LineSplitter
    from inferflux.api.batches.task import ENDPOINTS
    from inferflux.api.batches.validation import Validation

    if endpoint is not None and endpoint not in ENDPOINTS:
        raise CommandFailed(f"the endpoint {endpoint!r} is none of {', '.join(ENDPOINTS)}")
    named = jobs.endpoint_of(file)
    # A first line that names none is one of the problems to be told.
    wanted = endpoint or (named if named in ENDPOINTS else jobs.CHAT)
    found = Validation(wanted, MAX_LINES, MAX_LINE_BYTES, lambda name: name)
    splitter = LineSplitter(MAX_LINE_BYTES)
    with jobs.opened(file) as source:
        while chunk := source.read(1 << 18):
            for line in splitter.feed(chunk):
                found.add(line)
    for line in splitter.close():
        found.add(line)
    found.close()
    problems = [
        {"line": each.line, "code": each.code, "param": each.param, "message": each.message} for each in found.problems
    ]
    if as_json:
        print_json({"lines": found.num_lines, "num_problems": found.num_problems, "problems": problems})
    else:
        for problem in problems:
            note(f"{jobs.place(problem)}{problem['message']} [{problem['code']}]")
    if found.num_problems:
        raise CommandFailed(f"{file}: {found.num_problems} of {found.num_lines} lines cannot be run")
    if not as_json:
        note(f"{file}: {found.num_lines} requests for {wanted}")


@app.command()
def run(
    prompts: Annotated[Path, typer.Argument(metavar="FILE", help="One prompt on each line; - is stdin.")],
    output: Output = Path("-"),
    model: Model = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1)] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0)] = None,
    window: Window = "24h",
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Answer plain prompts, one a line, and write `{"prompt", "text", "error"}` for each, in their order."""
    text = read_prompt() if str(prompts) == "-" else _text(prompts)
    # Not `splitlines`: a prompt may hold every other character that Unicode counts as a line break.
    asked = [each.removesuffix("\r") for each in text.split("\n") if each.strip()]
    if not asked:
        raise CommandFailed(f"{prompts}: there is no prompt in it")
    jobs.check_writable(output)
    with (
        connect(url, api_key) as client,
        jobs.from_prompts(asked, model, max_tokens=max_tokens, temperature=temperature) as path,
    ):
        batch = jobs.submit(client, path, jobs.CHAT, window, None)
        note(f"batch {batch['id']}: Ctrl-C leaves it running")
        batch = _watched(client, batch["id"])
        answers = jobs.answers(client, batch, len(asked))
    with jobs.written(output) as out:
        for prompt, (answer, error) in zip(asked, answers, strict=True):
            record = {"prompt": prompt, "text": answer, "error": error}
            out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    jobs.check_ended_well(batch)


def _watched(client: Client, ident: str) -> dict[str, Any]:
    from .progress import watch

    return watch(jobs.follow(client, ident))


def _fetched(client: Client, file: str | None, path: Path) -> None:
    with jobs.written(path) as out:
        jobs.fetch(client, file, out)


def _text(path: Path) -> str:
    with jobs.opened(path) as file:
        try:
            return file.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise CommandFailed(f"{path}: is not UTF-8") from None


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is no NAME=VALUE", param_hint="--metadata")
    return name, value
