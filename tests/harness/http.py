"""A small HTTP server on a free port of this machine, scripted by a function."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec


class Asked(msgspec.Struct, frozen=True):
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Answer(msgspec.Struct, frozen=True):
    """A dict or list goes as JSON, bytes as they are, any other iterable of bytes piece by piece.

    Without a Content-Length header the body ends with the connection.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = {}

    def pieces(self) -> Iterable[bytes]:
        if isinstance(self.body, bytes):
            return [self.body]
        if isinstance(self.body, dict | list):
            return [msgspec.json.encode(self.body)]
        return self.body or []


def sse(*chunks: Any) -> Answer:
    """An event stream: each chunk as JSON, or the bytes themselves, in one event."""
    data = (chunk if isinstance(chunk, bytes) else msgspec.json.encode(chunk) for chunk in chunks)
    return Answer(
        body=tuple(b"data: " + each + b"\n\n" for each in data), headers={"Content-Type": "text/event-stream"}
    )


class HttpServer:
    """Answers by `answer`, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.asked: list[Asked] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = Asked(
                    self.command,
                    self.path,
                    {name.lower(): value for name, value in self.headers.items()},
                    self.rfile.read(int(self.headers.get("Content-Length", 0))),
                )
                outer.asked.append(asked)
                reply = answer(asked)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in reply.pieces():
                    self.wfile.write(piece)
                    self.wfile.flush()

            do_POST = do_PUT = do_DELETE = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[HttpServer]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()
