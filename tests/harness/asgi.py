"""An ASGI application without a server: its lifespan, and requests whose client can go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def running(app: Any) -> AsyncIterator[None]:
    """The application's lifespan, entered and left in one task of its own, as a server does."""
    started, stop = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        async with app.lifespan():
            started.set()
            await stop.wait()

    task = asyncio.create_task(live())
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        if started.is_set():
            yield
    finally:
        stop.set()
        await task


class Call:
    """One request: read status and body as they come, hang up at will. A body that is not `whole` has more to come."""

    def __init__(
        self,
        app: Any,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        whole: bool = True,
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._app = app
        self._whole = whole
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._body: bytes | None = body
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        self.task: asyncio.Task[None] = asyncio.create_task(self._run())

    def hang_up(self) -> None:
        self._gone.set()

    async def begin(self) -> None:
        """Wait for status and headers."""
        message = await self._next()
        self.status = message["status"]
        self.headers = {name.decode(): value.decode() for name, value in message["headers"]}

    async def piece(self) -> bytes:
        """The next piece of the body; empty at its end."""
        if not self.status:
            await self.begin()
        return bytes((await self._next()).get("body", b""))

    async def until(self, mark: bytes) -> bytes:
        """The body up to the piece that holds the mark."""
        body = b""
        while mark not in body:
            piece = await self.piece()
            assert piece, f"the body ended before {mark!r}: {body!r}"
            body += piece
        return body

    async def _next(self) -> dict[str, Any]:
        getter = asyncio.create_task(self._messages.get())
        done, _ = await asyncio.wait({getter, self.task}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        if getter in done:
            return getter.result()
        getter.cancel()
        assert done, "no answer within 60 s"
        self.task.result()
        return self._messages.get_nowait() if not self._messages.empty() else {}

    async def _run(self) -> None:
        await self._app(self._scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": not self._whole}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self._messages.put_nowait(message)
