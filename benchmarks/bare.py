"""The peer of the relay benchmark: a Litestar stream with nothing behind it.

Each request is parsed and answered with one OpenAI-style SSE event for each token, encoded like ours, as fast as the
server can: no authentication, no queue, no worker. Run as `python bare.py PORT`.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import msgspec
import uvicorn
from litestar import Litestar, get, post
from litestar.response import Stream


class Body(msgspec.Struct):
    """The two fields that matter here."""

    model: str
    max_tokens: int


class Delta(msgspec.Struct):
    content: str


class Choice(msgspec.Struct):
    delta: Delta
    index: int = 0
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    id: str
    model: str
    choices: tuple[Choice, ...]
    object: str = "chat.completion.chunk"
    created: int = 0


_encode = msgspec.json.Encoder().encode


@post("/v1/chat/completions", status_code=200)
async def chat(data: Body) -> Stream:
    async def events() -> AsyncIterator[bytes]:
        for number in range(data.max_tokens):
            chunk = Chunk("chatcmpl-bare", data.model, (Choice(Delta(f"word{number} ")),))
            yield b"data: " + _encode(chunk) + b"\n\n"
        yield b"data: [DONE]\n\n"

    return Stream(events(), media_type="text/event-stream")


@get("/readyz")
async def ready() -> str:
    return "ok"


def main() -> None:
    app = Litestar([chat, ready], openapi_config=None)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning")


if __name__ == "__main__":
    main()
