"""A program with nothing but a NATS client and JSON, under a tenant's own credentials."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from harness.publisher import ME, Wire, connected
from harness.server import PUBLISHER, TENANT, Server

pytestmark = [pytest.mark.model, pytest.mark.integration]

LANE = f"inferflux.infer.smollm2.default.{PUBLISHER}"


class Publisher(Wire):
    """Publishes prompts."""

    async def ask(self, request: str, body: dict[str, Any] | bytes, lane: str = LANE) -> list[dict[str, Any]]:
        """Publish, and collect the request's frames up to the terminal one."""
        replies = await self.client.subscribe(f"inferflux.reply.{ME}.{request}")
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.client.publish(lane, data, headers={"Nats-Msg-Id": f"{ME}.{request}"})
        frames: list[dict[str, Any]] = []
        while not frames or not ("usage" in frames[-1] or "error" in frames[-1]):
            frames.append(json.loads((await replies.next_msg(timeout=60)).data))
        await replies.unsubscribe()
        return frames


@pytest.fixture
async def publisher(model_server: Server) -> AsyncIterator[Publisher]:
    async with connected(model_server) as wire:
        yield Publisher(wire.client, wire.errors)


async def test_a_prompt_is_answered_on_its_reply_subject(publisher: Publisher) -> None:
    frames = await publisher.ask(
        "hello-1",
        {"type": "completion", "id": "hello-1", "prompt": "1, 2, 3,", "max_tokens": 8, "temperature": 0},
    )
    assert "4" in "".join(frame.get("text", "") for frame in frames)
    assert (
        frames[-1]["usage"] == {"prompt_tokens": 8, "completion_tokens": 8}
        or frames[-1]["usage"]["completion_tokens"] == 8
    )
    assert frames[-1]["finish_reason"] == "length"
    assert frames[0]["model"] == "smollm2"
    indexes = [frame.get("index", 0) for frame in frames]
    assert indexes == sorted(indexes)
    assert all("sealed" in frame and "hash" in frame for frame in frames)


async def test_a_chat_is_rendered_by_the_worker(publisher: Publisher) -> None:
    messages = [{"role": "user", "content": "Say hi"}]
    frames = await publisher.ask("chat-1", {"type": "chat", "id": "chat-1", "messages": messages, "max_tokens": 6})
    assert frames[-1]["usage"]["completion_tokens"] >= 1


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{not json", "invalid_json", None),
        ({"type": "poem", "id": "bad"}, "invalid_request", "type"),
        ({"type": "completion", "id": "bad"}, "invalid_request", None),
        ({"type": "completion", "id": "bad", "prompt": "x", "temperature": 9}, "invalid_request", "temperature"),
        ({"type": "completion", "id": "bad", "prompt": ""}, "invalid_request", "prompt"),
    ],
)
async def test_a_bad_body_gets_its_terminal_error(
    publisher: Publisher, request: pytest.FixtureRequest, body: Any, code: str, param: str | None
) -> None:
    number = abs(hash(request.node.name)) % 10**9
    name = f"bad-{number}"
    if isinstance(body, dict):
        body = body | {"id": name}
    frames = await publisher.ask(name, body)
    assert frames[-1]["error"]["code"] == code
    assert frames[-1]["error"].get("param") == param


async def test_cancel_ends_a_running_request(publisher: Publisher) -> None:
    replies = await publisher.client.subscribe(f"inferflux.reply.{ME}.long-1")
    body = {"type": "completion", "id": "long-1", "prompt": "Once", "max_tokens": 1500, "ignore_eos": True}
    await publisher.client.publish(LANE, json.dumps(body).encode())
    await replies.next_msg(timeout=60)
    await publisher.client.publish(f"inferflux.cancel.{ME}.long-1", b"")
    while True:
        frame = json.loads((await replies.next_msg(timeout=60)).data)
        if "error" in frame:
            break
    assert frame["error"]["code"] == "cancelled"


@pytest.mark.parametrize(
    "subject",
    [
        f"inferflux.infer.smollm2.default.{TENANT}",
        f"inferflux.infer.smollm2.priority.{PUBLISHER}",
        f"inferflux.tape.{ME}.x.frame",
        f"inferflux.cancel.t-{TENANT}.x",
        "$JS.API.STREAM.DELETE.PROMPTS",
        "$KV.registry.x",
    ],
)
async def test_publishing_elsewhere_is_refused(publisher: Publisher, subject: str) -> None:
    await publisher.client.publish(subject, b"{}")
    assert "permissions violation" in await publisher.refused()


@pytest.mark.parametrize("subject", [f"inferflux.reply.t-{TENANT}.>", "inferflux.>", "inferflux.infer.>", "_INBOX.>"])
async def test_listening_elsewhere_is_refused(publisher: Publisher, subject: str) -> None:
    await publisher.client.subscribe(subject)
    assert "permissions violation" in await publisher.refused()
