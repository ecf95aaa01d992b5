"""A connection: uvicorn's, with bounds on how much, and for how long, somebody may send before there is a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from inferflux.broker.errors import Code
from inferflux.broker.wire.requests import Failure, failure

from .problems import problem

MAX_HEAD_BYTES = 64 * 1024
HEAD_S = 30.0
"""For a request's first line and headers, from the first byte or from the connection's beginning."""

BODY_PAUSE_S = 30.0
"""How long a body that is not complete may stand still."""

LINGER_S = 2.0

_INVALID = failure(Code.INVALID_REQUEST, "this is no HTTP request that the server understands")
_TOO_LARGE = failure(Code.REQUEST_TOO_LARGE, f"a request's first line and headers may have {MAX_HEAD_BYTES} bytes")
_TOO_SLOW = failure(Code.INVALID_REQUEST, "the request did not come in time")


class BoundedProtocol(HttpToolsProtocol):
    """Closes what is too large or too slow, so that connections of strangers cost little and not for ever."""

    _in_head = False
    _in_body = False
    _num_head_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(HEAD_S, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        was_in_head = self._in_head
        super().data_received(data)
        if self._refused:
            return
        if self.transport.is_closing():
            self._disarm()
        elif self._in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, _TOO_LARGE)
            elif not was_in_head:
                self._arm(HEAD_S, self._head_is_late)
        elif self._in_body:
            self._arm(BODY_PAUSE_S, self._body_stands_still)
        else:
            self._disarm()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._num_head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refuse(431, _TOO_LARGE)
            # The parser gives up.
            raise ValueError
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, _INVALID)

    def _refuse(self, status: int, why: Failure) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        body = msgspec.json.encode(problem(why))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        if self.transport.can_write_eof():
            # Closed at once, what the client still sends would be answered by a reset, and the answer lost.
            self.transport.write_eof()
            self._arm(LINGER_S, self.transport.close)
        else:
            self.transport.close()

    def _head_is_late(self) -> None:
        if self._in_head:
            self._refuse(408, _TOO_SLOW)
        else:
            self.transport.close()

    def _body_stands_still(self) -> None:
        if self.flow.read_paused:
            # It is we who do not read.
            self._arm(BODY_PAUSE_S, self._body_stands_still)
        else:
            self.transport.close()

    def _arm(self, delay_s: float, late: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(delay_s, late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
