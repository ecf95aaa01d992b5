"""The configuration file of the embedded nats-server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from inferflux.config.settings import Settings

from . import accounts
from .credentials import Login
from .permissions import Permissions

MEMORY_MARGIN = 64 * 1024 * 1024
MAX_PAYLOAD = 8 * 1024 * 1024
LOG_FILE = "nats-server.log"


def render(
    settings: Settings, store_dir: Path, port: int, logins: Mapping[str, Login], allowed: Mapping[str, Permissions]
) -> bytes:
    """The whole file, as JSON, which nats-server reads too."""
    config: dict[str, Any] = {
        "server_name": "inferflux",
        "host": "127.0.0.1",
        "port": port,
        "max_payload": MAX_PAYLOAD,
        "log_file": str(store_dir / LOG_FILE),
        "logfile_size_limit": 10 * 1024 * 1024,
        "logfile_max_num": 3,
        "jetstream": {
            "store_dir": str(store_dir / "data"),
            "sync_interval": settings.broker.sync_interval,
            # The tape and the limits' minutes reserve theirs; watches keep small consumers in memory beside them.
            "max_memory_store": settings.tape.max_bytes + MEMORY_MARGIN,
        },
        "accounts": accounts.accounts(logins, allowed),
    }
    return msgspec.json.format(msgspec.json.encode(config), indent=2)
