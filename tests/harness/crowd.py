"""Many clients at once: streams read to their end, and what each of them saw."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import msgspec

from inferflux.broker.errors import Code

from .fleet import stub_text
from .server import KEY

MAX_TRIES = 40
PAUSE_S = 0.25
PASSING = ("ConnectError", "ReadError", "RemoteProtocolError", Code.DRAINING)
"""What another replica can make good: no connection, a broken one, and a replica that is leaving."""

_numbers = itertools.count()


class Outcome(msgspec.Struct):
    """What one client saw of one stream. `status` 0: no connection, or the connection broke."""

    prompt: str
    num_tokens: int
    started_s: float
    status: int = 0
    texts: list[str] = []
    error: str | None = None
    finish_reason: str | None = None
    num_reported: int | None = None
    done: bool = False
    first_s: float | None = None
    ended_s: float = 0.0
    request: str = ""
    mark: str = ""
    num_moves: int = 0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token."""
        assert self.first_s is not None, self
        return self.first_s - self.started_s

    def assert_exact(self) -> None:
        """All of the answer, each token in an event of its own and once, and nothing else."""
        assert (self.status, self.error) == (200, None), (self.status, self.error, len(self.texts))
        assert self.text == stub_text(self.prompt, self.num_tokens)
        assert len(self.texts) == self.num_tokens
        assert self.num_reported == self.num_tokens
        assert self.done


class Crowd:
    """Clients that share a connection pool. `outcomes` are those of all streams that were started."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.outcomes: list[Outcome] = []
        self._client = client

    async def ask(self, url: str, prompt: str, num_tokens: int, *, key: str = KEY, **body: Any) -> Outcome:
        """One stream, read to whatever end. Never raises."""
        outcome = Outcome(prompt, num_tokens, time.monotonic())
        self.outcomes.append(outcome)
        return await self._read(self._post(url, outcome, key, body, {}), outcome)

    async def resume(self, url: str, outcome: Outcome) -> Outcome:
        """Read on, at any replica, after the last event that came."""
        outcome.error = None
        headers = {"authorization": f"Bearer {KEY}", "last-event-id": outcome.mark}
        return await self._read(
            self._client.stream("GET", f"{url}/v1/streams/{outcome.request}", headers=headers), outcome
        )

    async def insist(self, urls: Sequence[str], prompt: str, num_tokens: int) -> Outcome:
        """A client that wants its whole answer, of whichever replica: what was refused without having been begun is
        sent to the next, under the same idempotency key, and what broke off is read on there."""
        key = f"insist-{next(_numbers)}"
        outcome = Outcome(prompt, num_tokens, time.monotonic())
        for url in itertools.islice(itertools.cycle(urls), MAX_TRIES):
            outcome.error = None
            if outcome.request:
                await self.resume(url, outcome)
            else:
                await self._read(self._post(url, outcome, KEY, {}, {"idempotency-key": key}), outcome)
            if outcome.done or outcome.error not in PASSING:
                break
            outcome.num_moves += 1
            await asyncio.sleep(PAUSE_S)
        self.outcomes.append(outcome)
        return outcome

    def _post(
        self, url: str, outcome: Outcome, key: str, body: dict[str, Any], headers: dict[str, str]
    ) -> AbstractAsyncContextManager[httpx.Response]:
        request = {"model": "stub", "prompt": outcome.prompt, "max_tokens": outcome.num_tokens, "stream": True}
        request |= {"stream_options": {"include_usage": True}} | body
        headers = {"authorization": f"Bearer {key}"} | headers
        return self._client.stream("POST", url + "/v1/completions", json=request, headers=headers)

    async def _read(self, call: AbstractAsyncContextManager[httpx.Response], outcome: Outcome) -> Outcome:
        try:
            async with call as response:
                outcome.status = response.status_code
                if response.status_code != 200:
                    outcome.error = json.loads(await response.aread())["error"]["code"]
                    return outcome
                outcome.request = outcome.request or response.headers["x-request-id"]
                mark = ""
                async for line in response.aiter_lines():
                    if line.startswith("id: "):
                        mark = line.removeprefix("id: ")
                    elif line.startswith("data: "):
                        _note(outcome, line.removeprefix("data: "))
                        outcome.mark = mark
        except httpx.HTTPError as error:
            outcome.error = outcome.error or type(error).__name__
        finally:
            outcome.ended_s = time.monotonic()
        return outcome

    async def ask_whole(self, url: str, prompt: str, num_tokens: int, *, key: str = KEY) -> None:
        """One answer that is not streamed, which must be the right one."""
        request = {"model": "stub", "prompt": prompt, "max_tokens": num_tokens}
        headers = {"authorization": f"Bearer {key}"}
        response = await self._client.post(url + "/v1/completions", json=request, headers=headers)
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["text"] == stub_text(prompt, num_tokens)

    async def all(self, urls: Sequence[str], prompts: Sequence[str], num_tokens: int, **body: Any) -> list[Outcome]:
        """One stream for each prompt, all at once, the replicas taking turns."""
        asking = [self.ask(urls[n % len(urls)], prompt, num_tokens, **body) for n, prompt in enumerate(prompts)]
        return list(await asyncio.gather(*asking))


@asynccontextmanager
async def crowd() -> AsyncIterator[Crowd]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(limits=limits, timeout=180) as client:
        yield Crowd(client)


def _note(outcome: Outcome, data: str) -> None:
    if data == "[DONE]":
        outcome.done = True
        return
    event = json.loads(data)
    if "error" in event:
        outcome.error = event["error"]["code"]
        return
    if event.get("usage"):
        outcome.num_reported = event["usage"]["completion_tokens"]
    for choice in event.get("choices", ()):
        if choice["text"]:
            outcome.first_s = outcome.first_s or time.monotonic()
            outcome.texts.append(choice["text"])
        outcome.finish_reason = choice.get("finish_reason") or outcome.finish_reason
