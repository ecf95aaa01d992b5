"""nats-py, bent to our needs: plain-function handlers, a publish that does not await, a loss that is noticed at once.

nats-py's own subscriptions put a queue and a task behind every subject, drop what overflows, and share one inbox
that loses messages delivered by a consumer. Here a handler runs in the read loop itself, so order is the server's,
nothing is dropped, and a slow handler slows the socket.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from nats.aio.client import Client, Server
from nats.protocol.command import unsub_cmd

from inferflux.config.logs import get_logger

from .packet import Packet

MAX_BACKOFF_S = 2.0

Handler = Callable[[Packet], None]

log = get_logger("broker")


class NatsClient(Client):
    """nats-py's client with messages handed to plain functions and a loss that is noticed at once."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        super().__init__()
        self.handlers: dict[int, Handler] = {}
        self._on_lost = on_lost
        self._kick: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._kick.set_result(None)

    def send(self, command: bytes) -> None:
        self._pending.append(command)
        self._pending_data_size += len(command)
        assert self._flush_queue is not None
        if self._flush_queue.empty():
            self._flush_queue.put_nowait(self._kick)

    async def listen(self, subject: str, handler: Handler) -> int:
        # subscribe() takes the next id before it first awaits, so no message can come ahead of the handler.
        sid = self._sid + 1
        self.handlers[sid] = handler
        await self.subscribe(subject)
        return sid

    def forget(self, sid: int) -> None:
        if self.handlers.pop(sid, None) is not None:
            self._remove_sub(sid)
            if self.is_connected:
                self.send(unsub_cmd(sid, 0))

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        handler = self.handlers.get(sid)
        if handler is None:
            return
        try:
            handler(Packet(subject.decode(), reply.decode(), data, headers or b""))
        except Exception as error:
            log.error("handler failed", error=error, subject=subject.decode(errors="replace"))

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # nats-py writes a ping past what is still pending, so its pong would prove nothing about that.
        if self._pending and self._transport:
            self._transport.writelines(self._pending)
            self._pending = []
            self._pending_data_size = 0
        await super()._send_ping(future)

    async def _process_op_err(self, e: Exception) -> None:
        if self.is_connected:
            # What was not written yet must not be sent after a reconnect: its sender was told that it failed.
            self._pending.clear()
            self._pending_data_size = 0
            self._on_lost()
            writer = getattr(self._transport, "_io_writer", None)
            if writer is not None:
                writer.transport.abort()
        await super()._process_op_err(e)


def next_server(servers: list[Server], info: dict[str, Any]) -> tuple[Server, float]:
    """The server that failed least, after a pause that grows with its failures and differs between clients."""
    server = min(servers, key=lambda each: (each.reconnects, random.random()))  # noqa: S311
    pause_s = min(0.05 * 2 ** min(server.reconnects, 8), MAX_BACKOFF_S)
    return server, pause_s * random.uniform(0.5, 1.5)  # noqa: S311
