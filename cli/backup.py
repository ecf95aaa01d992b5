"""`inferctl backup` and `inferctl restore`: the broker's store in a file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import CommandFailed
from .options import Config, Json, Set, print_json
from .terminal import note, table_console

if TYPE_CHECKING:
    from inferflux.broker.snapshot import Snapshots
    from inferflux.config.settings import Settings

Target = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]
_OPEN_S = 10.0


def backup(target: Target, config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Save queue, dead letters, registry, policies, limits, batches and files while the fleet runs.

    The settings name the broker; an external one needs the user `admin` (broker.user, broker.password).
    """
    settings = _settings(config, set_)
    rows = asyncio.run(_backup(settings, target))
    _report(rows, as_json)
    note(f"{target} holds prompts and secrets: keep it where only you can read it")


def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What `inferctl backup` wrote.")],
    config: Config = None,
    replace: Annotated[bool, typer.Option("--replace", help="Delete what the broker holds now.")] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Put a backup into a broker. Stop API replicas and workers first; an embedded server is started for it."""
    settings = _settings(config, set_)
    rows = asyncio.run(_restore(settings, source, replace=replace))
    _report(rows, as_json)


def _settings(config: Path | None, assignments: list[str] | None) -> Settings:
    from inferflux.config import load

    return load.load(load.find(config), os.environ, load.parse_assignments(assignments or [])).settings


async def _backup(settings: Settings, target: Path) -> list[dict[str, Any]]:
    from inferflux.broker.credentials import CREDENTIALS_FILE
    from inferflux.broker.snapshot import saved_streams

    from .archive import ArchiveWriter

    rows = []
    async with _connected(settings) as snapshots:
        with ArchiveWriter(target) as archive:
            if settings.broker.url is None:
                archive.credentials((Path(settings.broker.store_dir) / CREDENTIALS_FILE).read_bytes())
            for name in saved_streams(settings):
                if await snapshots.num_messages(name) is None:
                    continue
                head, chunks = await snapshots.save(name)
                size = await archive.stream(name, head, chunks)
                rows.append({"stream": name, "messages": head.num_messages, "bytes": size})
    return rows


async def _restore(settings: Settings, source: Path, *, replace: bool) -> list[dict[str, Any]]:
    from inferflux.broker.embedded import EmbeddedServer

    from .archive import Archive

    with Archive(source) as archive:
        if settings.broker.url is not None:
            async with _connected(settings) as snapshots:
                return await _put_back(settings, archive, snapshots, replace=replace)
        _put_credentials(settings, archive.credentials(), replace=replace)
        server = EmbeddedServer(settings)
        await server.start()
        try:
            async with _connected(settings) as snapshots:
                return await _put_back(settings, archive, snapshots, replace=replace)
        finally:
            await server.stop()


async def _put_back(settings: Settings, archive: Any, snapshots: Snapshots, *, replace: bool) -> list[dict[str, Any]]:
    streams = archive.about.streams
    held = {entry.name: num for entry in streams if (num := await snapshots.num_messages(entry.name))}
    if held and not replace:
        some = ", ".join(f"{name} ({num} messages)" for name, num in sorted(held.items()))
        raise CommandFailed(f"the broker is not empty: {some}; say --replace to delete that")
    rows = []
    for entry in streams:
        await snapshots.restore(entry.head, archive.chunks(entry.name), num_replicas=settings.broker.replicas)
        rows.append({"stream": entry.name, "messages": entry.head.num_messages})
    await snapshots.align(settings)
    return rows


def _put_credentials(settings: Settings, content: bytes | None, *, replace: bool) -> None:
    from inferflux.broker.credentials import CREDENTIALS_FILE

    path = Path(settings.broker.store_dir) / CREDENTIALS_FILE
    if content is None or (path.exists() and path.read_bytes() == content):
        return
    if path.exists() and not replace:
        raise CommandFailed(f"{path} is another server's: say --replace, or restore into an empty broker.store_dir")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[Snapshots]:
    from inferflux.broker.credentials import ROLE_ADMIN, resolve
    from inferflux.broker.link import Link
    from inferflux.broker.snapshot import Snapshots

    link = Link(resolve(settings.broker, ROLE_ADMIN), name="inferctl", timeout_s=settings.broker.timeout_s)
    await link.open(_OPEN_S)
    try:
        yield Snapshots(link, timeout_s=settings.broker.timeout_s)
    finally:
        await link.close()


def _report(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False) if rows else Table()
    for row in rows:
        table.add_row(*map(str, row.values()))
    table_console().print(table)
