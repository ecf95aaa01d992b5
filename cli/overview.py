"""What a running server says of itself, its workers and its queues: the source of `status` and `top`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Client


def overview(client: Client) -> dict[str, Any]:
    """Needs a key with the scope `admin`. Raises CommandFailed."""
    ready, _ = client.probe("/readyz")
    return {
        "at": round(time.time(), 3),
        "ready": ready == 200,
        "api": client.get("/v1/admin/status"),
        "workers": client.get("/v1/admin/workers")["data"],
        "queue": client.get("/v1/admin/queue")["data"],
    }
