"""A worker that says what a script tells it to: claims prompts and publishes frames like a real one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from inferflux.broker.broker import Bell, Broker, Delivery, LaneLimits
from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import (
    BUCKET_WORKERS,
    HEADER_MSG_ID,
    HEADER_STAMP,
    RequestKey,
    encode_token,
    infer,
)
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.fleet import ModelBeat, WorkerBeat
from inferflux.broker.wire.requests import AnyPrompt, Claim, Failure, Frame, Usage, decode_prompt, failure

SECRET = b"a stamp secret for tests"
LIMITS = LaneLimits(max_running=100, lease_s=30, idle_s=300)


class Turn:
    """One claimed prompt. Frames go out in the order of the calls."""

    def __init__(self, broker: Broker, delivery: Delivery, backend: str) -> None:
        self.prompt: AnyPrompt = decode_prompt(delivery.body)
        self.headers = dict(delivery.headers)
        self.lane = delivery.lane
        self.delivery = delivery
        self.attempt = 0
        stamp = Stamper(SECRET).check(
            self.headers.get(HEADER_STAMP),
            subject=infer(delivery.lane),
            msg_id=self.headers[HEADER_MSG_ID],
            body=delivery.body,
        )
        assert stamp is not None, "the prompt is not stamped"
        self.stamp = stamp
        self.key = RequestKey(stamp.owner, self.prompt.id)
        self._broker = broker
        self._backend: str | None = backend
        self._positions: dict[int, int] = {}

    async def claim(self, num_attempts: int = 1) -> None:
        last = await self._broker.last_claim(self.key)
        claim = Claim(worker="scripted", num_attempts=num_attempts)
        self.attempt = await self._broker.put_claim(self.key, claim, expected_seq=last[0] if last else 0)

    async def say(self, text: str, *, choice: int = 0, num_tokens: int = 1, **fields: Any) -> int:
        """One frame; its index follows from what was said before. Returns its sequence."""
        return await self._broker.send_frame(self.key, encode(self.frame(text, choice, num_tokens, **fields)))

    async def end(self, usage: Usage | None = None, **fields: Any) -> None:
        """The terminal frame, with the last piece of the answer where `text` or `finish_reason` is given."""
        frame = self.frame(fields.pop("text", ""), fields.pop("choice", 0), fields.pop("num_tokens", 0), **fields)
        await self._close(Frame(**{**_fields(frame), "usage": usage or Usage(prompt_tokens=3, completion_tokens=2)}))

    async def fail(self, error: Failure) -> None:
        await self._close(Frame(id=self.key.request, attempt=self.attempt, error=error))

    def frame(self, text: str, choice: int, num_tokens: int, **fields: Any) -> Frame:
        index = fields.pop("index", self._positions.get(choice, 0))
        self._positions[choice] = index + num_tokens
        backend, self._backend = self._backend, None
        defaults = {
            "attempt": self.attempt,
            "hash": f"h{choice}.{index + num_tokens}",
            "model": self.lane.model if backend else None,
            "backend": backend,
        }
        return Frame(
            id=self.key.request, choice=choice, index=index, num_tokens=num_tokens, text=text, **(defaults | fields)
        )

    async def _close(self, frame: Frame) -> None:
        await self._broker.put_terminal(self.key, encode(frame), fence=self.attempt)
        await self.delivery.ack()


Script = Callable[[Turn], Awaitable[None]]


class ScriptedWorker:
    """Runs `script` for every prompt of its models, once it has claimed it. Errors of scripts come out at the end."""

    def __init__(self, broker: Broker, *models: str, backend: str = "llamacpp") -> None:
        self.script: Script = hello
        self.turns: list[Turn] = []
        self.cancelled: list[RequestKey] = []
        self.cancel_seen = asyncio.Event()
        self._broker = broker
        self._models = models
        self._backend = backend
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Any] = []

    async def __aenter__(self) -> ScriptedWorker:
        for model in self._models:
            self._subscriptions.append(await self._broker.listen_bells(model, self._on_bell))
        self._subscriptions.append(await self._broker.listen_cancels(self._on_cancel))
        await self.beat()
        return self

    async def __aexit__(self, *_: object) -> None:
        for subscription in self._subscriptions:
            await subscription.close()
        waiting = [task for task in self._tasks if not task.done()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def beat(self, **fields: Any) -> None:
        models = tuple(
            ModelBeat(id=model, backend=self._backend, context_length=2048, num_slots=4, num_free_slots=4)
            for model in self._models
        )
        beat = WorkerBeat(worker="w1", epoch="e1", host="here", pid=1, started=0.0, at=0.0, models=models, **fields)
        bucket = await self._broker.bucket(BUCKET_WORKERS)
        await bucket.put(encode_token("w1"), encode(beat), ttl_s=60)

    async def leave(self) -> None:
        bucket = await self._broker.bucket(BUCKET_WORKERS)
        await bucket.delete(encode_token("w1"))

    def _on_bell(self, bell: Bell) -> None:
        task = asyncio.get_running_loop().create_task(self._work(bell))
        self._tasks.add(task)

    def _on_cancel(self, key: RequestKey) -> None:
        self.cancelled.append(key)
        self.cancel_seen.set()

    async def _work(self, bell: Bell) -> None:
        # A busy server may say "nothing" of a prompt that is there.
        while (delivery := await self._broker.pull(bell.lane, LIMITS)) is None:
            await asyncio.sleep(0.01)
        turn = Turn(self._broker, delivery, self._backend)
        self.turns.append(turn)
        await turn.claim()
        await self.script(turn)


async def hello(turn: Turn) -> None:
    """Two tokens for each choice, and the usage."""
    num_choices = getattr(turn.prompt, "n", 1)
    for choice in range(num_choices):
        await turn.say("Hel", choice=choice)
    for choice in range(num_choices - 1):
        await turn.say("lo", choice=choice, finish_reason="stop")
    await turn.end(text="lo", num_tokens=1, choice=num_choices - 1, finish_reason="stop")


async def silent(turn: Turn) -> None:
    """Claims, and then says nothing for ever."""
    await asyncio.Event().wait()


def failing(code: Any, message: str, **fields: Any) -> Script:
    """Ends at once with an error."""

    async def script(turn: Turn) -> None:
        await turn.fail(failure(code, message, **fields))

    return script


def _fields(frame: Frame) -> dict[str, Any]:
    return {name: getattr(frame, name) for name in frame.__struct_fields__}
