"""`inferctl admin guardrails`: what prompts and answers may not say, while the fleet runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import CommandFailed
from .options import DEFAULT_URL, ApiKey, DryRun, Json, Url, connect, dry, print_json
from .terminal import cell, note, table_console

PATH = "/v1/admin/guardrails"
ACTIONS = ("block", "redact", "flag")
STAGES = ("both", "input", "output")


def guardrails(
    get: Annotated[bool, typer.Option("--get", help="Only show; also when nothing else is asked.")] = False,
    set_: Annotated[
        str | None,
        typer.Option("--set", metavar="NAME,...", help="Exactly these: names of sets, and terms. Empty: none."),
    ] = None,
    add: Annotated[str | None, typer.Option("--add", metavar="NAME,...", help="These too.")] = None,
    remove: Annotated[str | None, typer.Option("--remove", metavar="NAME,...", help="These no more.")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Give the list back to the settings.")] = False,
    define: Annotated[
        list[str] | None,
        typer.Option("--define", metavar="SET=TERM,...", help="A set of terms; @FILE reads one from each line."),
    ] = None,
    action: Annotated[
        list[str] | None, typer.Option("--action", metavar="SET=ACTION", help="block, redact or flag what it finds.")
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option("--stage", metavar="SET=STAGE", help="Look at input, output or both.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option("--drop", metavar="SET", help="Forget what was said of it.")] = None,
    test: Annotated[str | None, typer.Option("--test", metavar="TEXT", help="Say what would become of it.")] = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show or change guardrails. Every replica and worker follows within a second.

    Built-in sets: pii (all of pii.mail, pii.phone, pii.card, pii.iban, pii.keys). Other names are sets that were
    defined here or in the settings; any other word is a term.
    """
    body = _body(set_, add, remove, reset=reset)
    changes_sets = bool(define or action or stage or drop)
    if (get or test is not None) and (body or changes_sets):
        raise typer.BadParameter("--get and --test change nothing: leave them out, or the options that do")
    with connect(url, api_key) as client:
        if test is not None:
            tried = client.post(f"{PATH}/test", {"text": test})
            print_json(tried) if as_json else _print_trial(tried)
            return
        if changes_sets:
            body["sets"] = _sets(client.get(PATH)["sets"], define or [], action or [], stage or [], drop or [])
        answer = client.put(dry(PATH, dry_run), body) if body else client.get(PATH)
    if as_json:
        print_json(answer)
        return
    _print(answer)
    if dry_run:
        note("dry run: nothing was changed")


def _body(set_: str | None, add: str | None, remove: str | None, *, reset: bool) -> dict[str, Any]:
    if reset and set_ is not None:
        raise typer.BadParameter("--reset gives the list back to the settings, --set replaces it: say one of them")
    body: dict[str, Any] = {"active": None} if reset else {}
    if set_ is not None:
        body["active"] = _names(set_)
    if add is not None:
        body["add"] = _names(add)
    if remove is not None:
        body["remove"] = _names(remove)
    return body


def _sets(
    known: dict[str, Any], define: Iterable[str], action: Iterable[str], stage: Iterable[str], drop: Iterable[str]
) -> dict[str, Any]:
    wanted: dict[str, Any] = dict.fromkeys(drop)

    def entry(name: str) -> dict[str, Any]:
        if wanted.get(name) is None:
            wanted[name] = dict(known.get(name, {}))
        return dict(wanted[name])

    for text in define:
        name, value = _pair(text, "--define")
        wanted[name] = entry(name) | {"terms": _terms(value)}
    for option, field, allowed, given in (("--action", "action", ACTIONS, action), ("--stage", "stage", STAGES, stage)):
        for text in given:
            name, value = _pair(text, option)
            if value not in allowed:
                raise typer.BadParameter(f"{option} {text!r}: choose one of {', '.join(allowed)}")
            wanted[name] = entry(name) | {field: value}
    return wanted


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name and value):
        raise typer.BadParameter(f"{option} {text!r}: write it as SET=VALUE")
    return name, value


def _terms(value: str) -> list[str]:
    if not value.startswith("@"):
        return _names(value)
    try:
        lines = Path(value[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{value[1:]} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def _names(text: str) -> list[str]:
    return [name for each in text.split(",") if (name := each.strip())]


def _print(answer: dict[str, Any]) -> None:
    from rich.table import Table

    console = table_console()
    if not answer["active"]:
        console.print("no guardrail is in force" + ("" if answer["opa_endpoint"] is None else " but OPA"))
    else:
        table = Table("guardrail", "kind", "terms", "action", "stage", box=None, pad_edge=False)
        for each in answer["active"]:
            num_terms = str(each["num_terms"]) if each["num_terms"] else "-"
            table.add_row(cell(each["name"]), each["kind"], num_terms, each["action"], each["stage"])
        console.print(table)
    console.print("the list was changed while running" if answer["changed"] else "the list is the settings' own")
    if answer["opa_endpoint"] is not None:
        console.print(f"OPA judges prompts: {answer['opa_endpoint']}", markup=False)
    idle = sorted(set(answer["sets"]) - {each["name"] for each in answer["active"]})
    if idle:
        console.print(f"defined, but not in force: {', '.join(idle)}", markup=False)


def _print_trial(tried: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("stage", "verdict", "found", "text", box=None, pad_edge=False)
    for stage in ("input", "output"):
        each = tried[stage]
        found = ", ".join(f"{hit['guardrail']} ({hit['action']})" for hit in each["found"])
        table.add_row(stage, "blocked" if each["blocked"] else "passes", cell(found or "-"), cell(each["text"] or "-"))
    table_console().print(table)
