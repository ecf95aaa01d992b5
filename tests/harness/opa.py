"""OPA's data API over a real Rego engine, which can be slow, broken, or answer whatever a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import regopy

POLICY = """
package inferflux

import rego.v1

default allow := false

allow if {
    input.tenant != "trial"
    not forbidden
}

forbidden if {
    some text in input.texts
    contains(lower(text), "forbidden topic")
}

reason := "trial tenants may not ask here" if input.tenant == "trial"

short if sum([count(text) | some text in input.texts]) < 20
"""


class OpaServer:
    """POST /v1/data/PATH evaluates `data.PATH` for the body's input. `raw` answers in place of the engine, with HTTP
    status, headers and body as given; while `hold` is set nothing is answered."""

    def __init__(self, policy: str) -> None:
        self.url = ""
        self.inputs: list[dict[str, Any]] = []
        self.raw: bytes | None = None
        self.hold: asyncio.Event | None = None
        self._rego = regopy.Interpreter()
        self._rego.add_module("policy", policy)

    def evaluate(self, path: str, given: Any) -> dict[str, Any]:
        """The document that OPA answers with: no result for what is undefined."""
        self._rego.set_input(given)
        output = self._rego.query("data." + path.replace("/", "."))
        if not output.results:
            return {}
        return {"result": json.loads(str(output))["expressions"][0]}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split(" ")
                size = 0
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode().partition(":")
                    size = int(value) if name.lower() == "content-length" else size
                given = json.loads(await reader.readexactly(size))["input"]
                assert method == "POST"
                self.inputs.append(given)
                if self.hold is not None:
                    await self.hold.wait()
                writer.write(self.raw or self._response(path.removeprefix("/v1/data/"), given))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _response(self, path: str, given: Any) -> bytes:
        body = json.dumps(self.evaluate(path, given)).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


@asynccontextmanager
async def running_opa(policy: str = POLICY) -> AsyncIterator[OpaServer]:
    """Serves until the block ends. `url` has no path."""
    opa = OpaServer(policy)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(opa.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    opa.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield opa
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answer(body: bytes, status: str = "200 OK", header: bytes = b"") -> bytes:
    """A raw HTTP answer."""
    return b"HTTP/1.1 %s\r\n%scontent-length: %d\r\n\r\n%s" % (status.encode(), header, len(body), body)
