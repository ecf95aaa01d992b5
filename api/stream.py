"""The streaming response: writes an exchange's events as they come, and closes the exchange however it ends."""

from __future__ import annotations

import time
from typing import Any

from litestar import Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from inferflux.config.logs import get_logger

from .events import Events, waiting
from .exchange import ClientGone, Exchange
from .replies import TapeFrame

log = get_logger("api")

HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream(Response[bytes]):
    """Begins with the frames in `first`, which may be none yet.

    The exchange itself watches for the client's end, so none of this is torn down in the middle of a write.
    """

    def __init__(
        self,
        exchange: Exchange,
        events: Events,
        first: list[TapeFrame],
        ping_interval_s: float,
        headers: dict[str, str],
    ) -> None:
        super().__init__(b"", status_code=200, headers=HEADERS | headers)
        self._exchange = exchange
        self._events = events
        self._first = first
        self._ping_interval_s = ping_interval_s

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:
        return _EventStreamResponse(
            self._exchange, self._events, self._first, self._ping_interval_s, headers=self.headers
        )


class _EventStreamResponse(ASGIResponse):
    _should_set_content_length = False

    def __init__(
        self,
        exchange: Exchange,
        events: Events,
        first: list[TapeFrame],
        ping_interval_s: float,
        *,
        headers: dict[str, Any],
    ) -> None:
        super().__init__(headers=headers)
        self._exchange = exchange
        self._events = events
        self._first = first
        self._ping_interval_s = ping_interval_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except ClientGone:
            pass
        finally:
            self._exchange.close()

    async def send_body(self, send: Send, receive: Receive) -> None:
        exchange, batch = self._exchange, self._first
        encode = self._events.encode
        body = encode(batch) if batch else waiting(exchange.outlook())
        while not exchange.ended:
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            batch = await exchange.read(time.monotonic() + self._ping_interval_s)
            body = encode(batch) if batch else waiting(exchange.outlook())
        await send({"type": "http.response.body", "body": body, "more_body": False})
