"""A streamed answer, read over as many connections as it takes."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from .errors import CommandFailed, ServerRefused
from .sse import parse_events

RESUMABLE = "x-inferflux-resumable"
RESUME_S = 20.0
"""How long a broken answer is asked for; a server keeps it for `streams.resume_grace_s`, 30 s unless set."""

PAUSE_S = 0.25
CANCEL_S = 3.0
_PASSING = ("draining", "broker_unavailable")


class Stream:
    """One request, and its answer from whichever replica has it. `urls` are the replicas, the first is asked first."""

    def __init__(self, http: httpx.Client, urls: Sequence[str], path: str, body: Mapping[str, Any]) -> None:
        self._http = http
        self._urls = urls
        self._path = path
        self._body = {**body, "stream": True}
        self._request: str | None = None
        self._mark: str | None = None
        self._done = False

    def chunks(self, *, resumable: bool) -> Iterator[dict[str, Any]]:
        """Each chunk once. `resumable` asks the server to go on when this connection breaks while it is well itself.

        Raises ServerRefused for an error, CommandFailed or httpx.HTTPError for an answer that does not come back.
        """
        try:
            yield from self._whole(resumable=resumable)
        except (KeyboardInterrupt, GeneratorExit):
            if resumable:
                self._cancel()
            raise

    def _whole(self, *, resumable: bool) -> Iterator[dict[str, Any]]:
        headers = {RESUMABLE: "true"} if resumable else {}
        broken = yield from self._read("POST", self._urls[0] + self._path, headers, json=self._body)
        give_up_s = time.monotonic() + RESUME_S
        # The replica that broke off is asked last.
        for url in itertools.cycle((*self._urls[1:], self._urls[0])):
            if self._done:
                return
            if self._request is None or time.monotonic() > give_up_s:
                raise broken or CommandFailed("the stream ended before the answer did: look at the server's log")
            headers = {} if self._mark is None else {"last-event-id": self._mark}
            before = self._mark
            broken = yield from self._read("GET", f"{url}/v1/streams/{self._request}", headers)
            if self._mark != before:
                give_up_s = time.monotonic() + RESUME_S
            if not self._done:
                time.sleep(PAUSE_S)

    def _cancel(self) -> None:
        """Nobody comes back for the rest. Where no replica can be told, it ends by itself after a while."""
        if self._request is None or self._done:
            return
        for url in self._urls:
            with contextlib.suppress(httpx.HTTPError):
                if self._http.delete(f"{url}/v1/streams/{self._request}", timeout=CANCEL_S).is_success:
                    return

    def _read(
        self, method: str, url: str, headers: Mapping[str, str], **sent: Any
    ) -> Generator[dict[str, Any], None, Exception | None]:
        """Read one connection to its end. Returns why another one may do better; None where it just ended."""
        try:
            with self._http.stream(method, url, headers=dict(headers), **sent) as response:
                if response.is_error:
                    raise ServerRefused.told(response.status_code, response.read())
                self._request = self._request or response.headers.get("x-request-id")
                for event in parse_events(response.iter_bytes()):
                    if event.data == "[DONE]":
                        self._done = True
                        break
                    chunk = msgspec.json.decode(event.data)
                    if "error" in chunk:
                        raise ServerRefused.told(response.status_code, event.data)
                    self._mark = event.id or self._mark
                    yield chunk
        except httpx.TransportError as error:
            return error
        except ServerRefused as refusal:
            if self._request is None or refusal.code not in _PASSING:
                raise
            return refusal
        return None
