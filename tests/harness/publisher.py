"""A direct publisher: a connection to NATS under a tenant's own credentials, and nothing of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
from nats.aio.client import Client

from .server import PUBLISHER, Server

ME = f"t-{PUBLISHER}"


class Wire:
    """The connection, and what the server said against it."""

    def __init__(self, client: Client, errors: list[str]) -> None:
        self.client = client
        self.errors = errors

    async def refused(self) -> str:
        """Return once the server has refused something: what it said first."""
        await self.client.flush()
        async with asyncio.timeout(30):
            while not self.errors:
                await asyncio.sleep(0.01)
        return self.errors[0].lower()


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Wire]:
    """As the tenant that may publish."""
    stored = json.loads((server.store_dir / "credentials.json").read_text())
    login = stored["logins"][ME]
    errors: list[str] = []

    async def on_error(error: Exception) -> None:
        errors.append(str(error))

    client = await nats.connect(
        stored["url"],
        user=login["user"],
        password=login["password"],
        inbox_prefix=f"_INBOX_{ME}".encode(),
        error_cb=on_error,
        connect_timeout=60,
    )
    try:
        yield Wire(client, errors)
    finally:
        await client.close()
