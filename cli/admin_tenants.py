"""`inferctl admin tenants`: tenants in force, what operators change of them, and NATS users for those that publish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from .options import DEFAULT_URL, ApiKey, DryRun, Json, Url, connect, dry, print_json
from .terminal import cell, note, table_console, write

PATH = "/v1/admin/tenants"
GIVE_BACK = "default"
NATS_URL = "nats://127.0.0.1:4222"

Value = str | None


def tenants(
    list_: Annotated[bool, typer.Option("--list", help="Show every tenant; also when nothing else is asked.")] = False,
    set_: Annotated[str | None, typer.Option("--set", metavar="TENANT", help="Change a tenant, or make one.")] = None,
    delete: Annotated[
        str | None, typer.Option("--delete", metavar="TENANT", help="Give all of it back to the settings.")
    ] = None,
    weight: Annotated[Value, typer.Option("--weight", help="Its share; `default` gives a value back.")] = None,
    classes: Annotated[list[str] | None, typer.Option("--class", help="A service class that it may use.")] = None,
    max_queued: Annotated[Value, typer.Option("--max-queued", help="Prompts in its lanes.")] = None,
    max_running: Annotated[Value, typer.Option("--max-running", help="Prompts at work at the same time.")] = None,
    cache_group: Annotated[Value, typer.Option("--cache-group", help="With whom it shares cached prefixes.")] = None,
    publish: Annotated[Value, typer.Option("--publish", help="true or false: NATS credentials of its own.")] = None,
    file_quota_bytes: Annotated[Value, typer.Option("--file-quota-bytes", help="Bytes of its files together.")] = None,
    file_retention_s: Annotated[Value, typer.Option("--file-retention-s", help="Seconds that they are kept.")] = None,
    nats_config: Annotated[
        bool, typer.Option("--nats-config", help="Print accounts, users and permissions for nats-server.")
    ] = False,
    credentials: Annotated[
        Path | None, typer.Option("--credentials", metavar="FILE", help="Where --nats-config keeps logins and secrets.")
    ] = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show and change tenants; replicas and workers follow within a second."""
    given = {
        "weight": weight,
        "classes": classes,
        "max_queued": max_queued,
        "max_running": max_running,
        "cache_group": cache_group,
        "publish": publish,
        "file_quota_bytes": file_quota_bytes,
        "file_retention_s": file_retention_s,
    }
    changes = {name: _value(name, text) for name, text in given.items() if text}
    if sum((list_, set_ is not None, delete is not None, nats_config)) > 1:
        raise typer.BadParameter("say one of --list, --set TENANT, --delete TENANT and --nats-config")
    if changes and set_ is None:
        raise typer.BadParameter("name the tenant to change: --set TENANT")
    with connect(url, api_key) as client:
        if set_ is not None:
            _show([client.put(dry(_path(set_), dry_run), changes)], as_json)
        elif delete is not None:
            answer = client.delete(dry(_path(delete), dry_run))
            if as_json:
                print_json(answer)
            else:
                note(f"{delete}: {'would be given' if dry_run else 'given'} back to the settings")
        elif nats_config:
            _print_config(client.get(PATH)["data"], credentials, dry_run)
        else:
            _show(client.get(PATH)["data"], as_json)


def _print_config(known: list[dict[str, Any]], path: Path | None, dry_run: bool) -> None:
    import msgspec

    from inferflux.broker import accounts, permissions
    from inferflux.broker.credentials import completed, load_file
    from inferflux.broker.store import Store

    if path is None:
        raise typer.BadParameter("--nats-config needs --credentials FILE: a file of logins to go on with, or to make")
    allowed = permissions.roles({each["id"]: each["classes"] for each in known if each["publish"]})
    kept = load_file(path)
    stored = completed(kept, allowed, NATS_URL if kept is None else kept.url)
    if not dry_run:
        Store(path.parent).write(path.name, msgspec.json.format(msgspec.json.encode(stored), indent=2))
    write(accounts.accounts_file(stored.logins, allowed).decode())
    note(f"credentials of {', '.join(allowed)}: {path}")
    note("what was printed holds the passwords: include it in each nats-server's configuration, and reload them")


def _value(name: str, text: Any) -> Any:
    if text in (GIVE_BACK, [GIVE_BACK]):
        return None
    try:
        match name:
            case "weight" | "file_retention_s":
                return float(text)
            case "max_queued" | "max_running" | "file_quota_bytes":
                return int(text)
            case "publish":
                return {"true": True, "false": False}[text]
    except (ValueError, KeyError):
        kind = "true or false" if name == "publish" else "a number"
        raise typer.BadParameter(f"--{name.replace('_', '-')} {text!r}: must be {kind}, or {GIVE_BACK}") from None
    return text


def _show(known: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(known)
        return
    from rich.table import Table

    names = ("tenant", "weight", "classes", "queued", "running", "cache group", "publishes", "file bytes", "changed")
    table = Table(*names, box=None)
    for each in known:
        table.add_row(
            cell(each["id"]),
            f"{each['weight']:g}",
            ", ".join(each["classes"]),
            str(each["max_queued"] or ""),
            str(each["max_running"] or ""),
            cell(each["cache_group"] or ""),
            "yes" if each["publish"] else "",
            str(each["file_quota_bytes"] or ""),
            ", ".join(each["changed"]),
        )
    table_console().print(table)
    if any(each["dry_run"] for each in known):
        note("a dry run: nothing was changed")


def _path(tenant: str) -> str:
    return f"{PATH}/{quote(tenant, safe='')}"
