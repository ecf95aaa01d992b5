"""`inferctl status`: processes, models and queues of a running server."""

from __future__ import annotations

from typing import Any

from .errors import CommandFailed
from .options import DEFAULT_URL, ApiKey, Json, Url, connect, print_json
from .terminal import table_console


def status(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show processes with their resident memory, models and queues. Needs a key with the scope `admin`."""
    with connect(url, api_key) as client:
        ready, _ = client.probe("/readyz")
        answer = {
            "ready": ready == 200,
            "api": client.get("/v1/admin/status"),
            "workers": client.get("/v1/admin/workers")["data"],
            "queue": client.get("/v1/admin/queue")["data"],
        }
    if as_json:
        print_json(answer)
    else:
        _print(url, answer)
