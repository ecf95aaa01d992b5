"""A client that reads a stream event by event, and may stop anywhere."""

from __future__ import annotations

import json
from typing import Any

import httpx

from .server import KEY, Server

PROMPT = {"model": "stub", "prompt": "Tell me about the sea", "max_tokens": 60, "stream": True, "temperature": 0}


class Streaming:
    """One streaming completion, read event by event."""

    def __init__(self, server: Server, **body: Any) -> None:
        self._request = httpx.stream(
            "POST",
            server.url + "/v1/completions",
            json=PROMPT | body,
            headers={"authorization": f"Bearer {KEY}"},
            timeout=60,
        )
        self.events: list[dict[str, Any]] = []
        self.id = ""

    def __enter__(self) -> Streaming:
        response = self._request.__enter__()
        assert response.status_code == 200, response.read()
        self.id = response.headers["x-request-id"]
        self._lines = response.iter_lines()
        return self

    def __exit__(self, *error: Any) -> None:
        self._request.__exit__(*error)

    def read(self, number: int | None = None) -> None:
        """Read that many more events, or all of them."""
        while number is None or number > 0:
            line = next(self._lines, None)
            if line is None or line == "data: [DONE]":
                return
            if line.startswith("data: "):
                self.events.append(json.loads(line.removeprefix("data: ")))
                number = None if number is None else number - 1

    @property
    def text(self) -> str:
        return "".join(choice["text"] for event in self.events for choice in event["choices"])


def worker_of(server: Server, stream: Streaming) -> int:
    """The process id of the worker that runs a stream."""
    found: list[int] = []

    def told() -> bool:
        found[:] = [pid for request, pid in server.holders().items() if request == stream.id]
        return bool(found)

    server.wait_until("its worker is told", told)
    return found[0]
