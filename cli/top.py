"""`inferctl top`: the fleet and its queues, live."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import CommandFailed
from .fleet import NO_WORKER, fleet_table
from .options import DEFAULT_URL, ApiKey, Json, Url, connect, print_json
from .overview import overview
from .queue import EMPTY, queue_table
from .terminal import table_console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .client import Client

INTERVAL_S = 1.0
MAX_LANES = 20


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one picture and leave.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Watch workers, slots, pages, tokens/s and queues, every second; q or Ctrl-C leaves. Needs the scope `admin`."""
    with connect(url, api_key) as client:
        seen = overview(client)
        if once or as_json:
            print_json(seen) if as_json else table_console().print(_picture(url, seen))
        if not once:
            try:
                _stream(client) if as_json else _live(client, url, seen)
            except KeyboardInterrupt:
                return


def _stream(client: Client) -> None:
    while True:
        time.sleep(INTERVAL_S)
        print_json(overview(client))


def _live(client: Client, url: str, seen: dict[str, Any]) -> None:
    from rich.live import Live

    from .keyboard import keyboard

    with keyboard() as wait, Live(_picture(url, seen), screen=True, auto_refresh=False) as live:
        while wait(INTERVAL_S) not in ("q", "Q"):
            try:
                picture = _picture(url, overview(client))
            except CommandFailed as error:
                # A server that restarts is no reason to leave.
                picture = _trouble(url, error)
            live.update(picture, refresh=True)


def _picture(url: str, seen: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    api, workers = seen["api"], seen["workers"]
    models = [model for worker in workers for model in worker["models"]]
    fullest = sorted(seen["queue"], key=lambda lane: -lane["depth"])
    totals = {name: sum(lane[name] for lane in fullest) for name in ("num_waiting", "num_running")}
    head = (
        f"{url}: {'ready' if seen['ready'] else 'not ready'}, replica {api['replica']}, {api['num_streams']} streams, "
        f"tape {api['tape_fill']:.0%} full\n"
        f"{len(workers)} workers, {sum(model['num_free_slots'] for model in models)} slots free, "
        f"{sum(model['tokens_per_s'] for model in models):.1f} tokens/s, "
        f"{totals['num_waiting']} prompts wait, {totals['num_running']} run\n"
    )
    parts: list[RenderableType] = [Text(head), fleet_table(workers) if workers else NO_WORKER, ""]
    parts.append(queue_table(fullest[:MAX_LANES]) if fullest else EMPTY)
    if len(fullest) > MAX_LANES:
        parts.append(f"and {len(fullest) - MAX_LANES} lanes more")
    return Group(*parts)


def _trouble(url: str, error: CommandFailed) -> RenderableType:
    from rich.text import Text

    return Text(f"{url}: {error}\ntrying again every second; q leaves")
