"""`inferctl admin policy`: seal the policy store, give it another passphrase, export it, import it, repair it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from .errors import CommandFailed
from .options import DEFAULT_URL, ApiKey, Config, DryRun, Json, Set, Url, connect, dry, print_json
from .terminal import note, write

if TYPE_CHECKING:
    from inferflux.broker.broker import Broker
    from inferflux.registry.store import PolicyStore

PATH = "/v1/admin/policy"
NEW_PASSPHRASE = "INFERFLUX_POLICY_NEW_PASSPHRASE"  # noqa: S105 - its variable's name

app = typer.Typer(help="Seal, export and repair the policy store.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE")]
T = TypeVar("T")


@app.command()
def status(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show whether the store is sealed, and what a replica refuses of it. Fails when something is refused."""
    with connect(url, api_key) as client:
        answer = client.get(PATH)
    if as_json:
        print_json(answer)
    elif answer["sealed"]:
        write(f"sealed; generation {answer['generation']}, {answer['num_entries']} entries\n")
    else:
        write("not sealed: entries lie in NATS as plain JSON\n")
    if answer["refused"]:
        raise CommandFailed(
            "refused, what was in force stays: "
            + "; ".join(f"{each['bucket']}/{each['key']}: {each['reason']}" for each in answer["refused"])
        )


@app.command()
def repair(url: Url = DEFAULT_URL, api_key: ApiKey = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Put back what is in force where somebody without the passphrase changed it."""
    with connect(url, api_key) as client:
        answer = client.post(dry(f"{PATH}/repair", dry_run), {})
    if as_json:
        print_json(answer)
    else:
        note(f"{'would put' if dry_run else 'put'} back: {', '.join(answer['repaired']) or 'nothing'}")
    if answer["left"]:
        raise CommandFailed(f"never seen in order, import an export: {', '.join(answer['left'])}")


@app.command()
def seal(config: Config = None, set_: Set = None, dry_run: DryRun = False) -> None:
    """Seal a store that has plain entries, under INFERFLUX_POLICY_PASSPHRASE. Then start every process with it."""
    from inferflux.registry.sealing import seal_entries

    passphrase = _passphrase()
    names = _with_broker(config, set_, lambda broker: seal_entries(broker, passphrase, dry_run=dry_run))
    note(f"{'would seal' if dry_run else 'sealed'}: {', '.join(names) or 'nothing was plain'}")


@app.command()
def rekey(config: Config = None, set_: Set = None) -> None:
    """Change the passphrase; processes that run go on. The new one is INFERFLUX_POLICY_NEW_PASSPHRASE, or asked for."""
    from inferflux.registry.sealing import rewrap

    passphrase = _passphrase()
    fresh = os.environ.get(NEW_PASSPHRASE) or typer.prompt(
        "new passphrase", hide_input=True, confirmation_prompt=True, err=True
    )
    _with_broker(config, set_, lambda broker: rewrap(broker, passphrase, fresh))
    note("the passphrase is changed: start processes with the new one from now on")


@app.command("export")
def export_(file: File, config: Config = None, set_: Set = None) -> None:
    """Write every entry into a file, encrypted under INFERFLUX_POLICY_PASSPHRASE."""
    from inferflux.registry.archive import export

    passphrase = _passphrase()

    async def run(broker: Broker) -> tuple[bytes, int]:
        store = await _store(broker, passphrase)
        if store.refused:
            raise CommandFailed(f"the store was tampered with, repair it first: {_names(store)}")
        return await export(store, passphrase)

    data, num_entries = _with_broker(config, set_, run)
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(data)
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror}") from None
    note(f"{num_entries} entries: {file}")


@app.command("import")
def import_(file: File, config: Config = None, set_: Set = None, dry_run: DryRun = False) -> None:
    """Make the store what an export says: tampered entries are replaced, others that it lacks deleted."""
    from inferflux.registry.archive import Difference, restore, unpack

    passphrase = _passphrase()
    try:
        items = unpack(file.read_bytes(), passphrase)
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}") from None

    async def run(broker: Broker) -> Difference:
        return await restore(broker, await _store(broker, passphrase), items, dry_run=dry_run)

    done = _with_broker(config, set_, run)
    for what, names in (("written", done.written), ("deleted", done.deleted), ("as it was", done.same)):
        note(f"{'would be ' if dry_run else ''}{what}: {', '.join(names) or 'nothing'}")


async def _store(broker: Broker, passphrase: str) -> PolicyStore:
    """The store whatever state its entries are in: sealed where it is, plain where it is not."""
    from inferflux.registry.sealing import open_vault, verify
    from inferflux.registry.store import PolicyStore

    vault = await open_vault(broker, passphrase)
    if vault is not None:
        await verify(broker, vault)
    return PolicyStore(broker, vault)


def _names(store: PolicyStore) -> str:
    return ", ".join(f"{bucket}/{key}" for bucket, key in sorted(store.refused))


def _with_broker(config: Path | None, assignments: list[str] | None, run: Callable[[Broker], Awaitable[T]]) -> T:
    """Run against the NATS that the settings name, as an API replica would connect to it."""
    from inferflux.broker.credentials import ROLE_API
    from inferflux.broker.jetstream import JetStreamBroker
    from inferflux.config import load

    settings = load.load(load.find(config), os.environ, load.parse_assignments(assignments or [])).settings

    async def connected() -> T:
        broker = await JetStreamBroker.connect(settings, ROLE_API, "inferctl")
        try:
            return await run(broker)
        finally:
            await broker.close()

    return asyncio.run(connected())


def _passphrase() -> str:
    from inferflux.registry.passphrase import PASSPHRASE

    return os.environ.get(PASSPHRASE) or str(typer.prompt("policy passphrase", hide_input=True, err=True))
