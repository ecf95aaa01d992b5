"""One client of an OpenAI-style server: raw sockets, one connection, and the time at which every token came."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec

EVENT = b"data: "
END = b"[DONE]"


class Server(msgspec.Struct, frozen=True):
    """Where the requests go. `path` is what stands before /v1."""

    host: str
    port: int
    tls: bool = False
    path: str = ""
    key: str = ""


class Answer(msgspec.Struct, frozen=True):
    """One request: when it was sent (perf_counter), seconds to the first token and to the end, the seconds between
    tokens, and what it said. The numbers of tokens are the server's own."""

    sent_s: float
    first_s: float
    total_s: float
    gaps_s: tuple[float, ...]
    num_prompt_tokens: int
    num_tokens: int
    text: str


class Refused(Exception):
    """The server answered with something else than a stream of tokens; the message is its own."""


def parse_server(url: str, key: str = "") -> Server:
    """Raises ValueError when the address is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--url: {url!r} is no http:// or https:// address")
    tls = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Server(parts.hostname, parts.port or (443 if tls else 80), tls, path, key)


class Client:
    """Asks one question at a time over a connection that stays open."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, path: str, body: dict[str, Any]) -> Answer:
        """Stream an answer to the end. Raises Refused, and OSError or EOFError when the connection breaks."""
        data = msgspec.json.encode({**body, "stream": True, "stream_options": {"include_usage": True}})
        sent_s = time.perf_counter()
        try:
            reader = await self._send(path, data)
        except (ConnectionError, asyncio.IncompleteReadError):
            # A connection that was kept may be closed by the server at any time; a new one must hold.
            await self.close()
            reader = await self._send(path, data)
        return await _read_answer(reader, sent_s)

    async def close(self) -> None:
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _send(self, path: str, data: bytes) -> asyncio.StreamReader:
        reader, writer = await self._connect()
        writer.write(self._head(path, len(data)) + data)
        await self._read_head(reader)
        return reader

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer, server = self._reader, self._writer, self._server
        if reader is None or writer is None or reader.at_eof():
            context = ssl.create_default_context() if server.tls else None
            reader, writer = await asyncio.open_connection(server.host, server.port, ssl=context, limit=1 << 20)
            self._reader, self._writer = reader, writer
        return reader, writer

    def _head(self, path: str, length: int) -> bytes:
        server = self._server
        key = f"authorization: Bearer {server.key}\r\n" if server.key else ""
        return (
            f"POST {server.path}{path} HTTP/1.1\r\nhost: {server.host}:{server.port}\r\n{key}"
            f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        ).encode()

    async def _read_head(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1]
        if not status.startswith(b"2") or b"transfer-encoding: chunked" not in head.lower():
            body = await reader.read(2000)
            await self.close()
            raise Refused(f"{head.splitlines()[0].decode()}: {body.decode(errors='replace')}")


async def _read_answer(reader: asyncio.StreamReader, sent_s: float) -> Answer:
    rest, pieces, times_s = b"", [], []
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    while size := int(await reader.readline(), 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *lines, rest = rest.split(b"\n")
        now_s = time.perf_counter()
        for line in lines:
            if not line.startswith(EVENT) or line.startswith(END, len(EVENT)):
                continue
            event = msgspec.json.decode(line[len(EVENT) :])
            if event.get("error"):
                raise Refused(f"the stream ended with an error: {event['error']}")
            text = _text(event)
            if text:
                pieces.append(text)
                times_s.append(now_s)
            usage = event.get("usage") or usage
    await reader.readline()
    ended_s = time.perf_counter()
    if not times_s:
        raise Refused("the stream ended without a token")
    gaps_s = tuple(later - earlier for earlier, later in itertools.pairwise(times_s))
    num_prompt, num_tokens = usage["prompt_tokens"], usage["completion_tokens"] or len(times_s)
    return Answer(sent_s, times_s[0] - sent_s, ended_s - sent_s, gaps_s, num_prompt, num_tokens, "".join(pieces))


def _text(event: dict[str, Any]) -> str:
    """What an event adds to the answer, of a completion or of a chat."""
    choices: Any = event.get("choices") or ({},)
    return choices[0].get("text") or (choices[0].get("delta") or {}).get("content") or ""
