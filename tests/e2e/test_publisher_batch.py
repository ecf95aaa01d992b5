"""A batch from a program with nothing but a NATS client and JSON, under a tenant's own credentials."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from harness.batches import ENDPOINT, jsonl, line
from harness.publisher import Wire, connected
from harness.server import PUBLISHER, TENANT, Server

pytestmark = pytest.mark.integration

CHUNK = 20_000
CHUNKS = f"$O.files.C.{PUBLISHER}"


class Publisher(Wire):
    """Stores files and submits batches."""

    async def store(self, name: str, content: bytes) -> int:
        """Store a file's chunks; how many there are."""
        chunks = [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]
        for number, chunk in enumerate(chunks):
            await self.ask(f"{CHUNKS}.{name}.{number}", chunk)
        return len(chunks)

    async def ask(self, subject: str, data: bytes) -> dict[str, Any]:
        answer = json.loads((await self.client.request(subject, data, timeout=60)).data)
        assert "error" not in answer, answer
        return dict(answer)

    async def submit(self, ident: str, name: str, content: bytes, num_chunks: int, **fields: Any) -> None:
        digest = hashlib.sha256(content).hexdigest()
        body = {"input_file": name, "chunks": num_chunks, "digest": digest, "endpoint": ENDPOINT} | fields
        await self.ask(f"$KV.batches.submit.{PUBLISHER}.{ident}", json.dumps(body).encode())

    async def read(self, stream: str, subject: str) -> bytes | None:
        """The newest message of a subject, by JetStream's direct get."""
        answer = await self.client.request(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", timeout=60)
        return None if (answer.headers or {}).get("Status") == "404" else answer.data

    async def ended(self, ident: str) -> dict[str, Any]:
        async with asyncio.timeout(120):
            while True:
                stored = await self.read("KV_batches", f"$KV.batches.batch.{PUBLISHER}.{ident}")
                batch = json.loads(stored) if stored else {}
                if batch.get("status") in ("completed", "failed", "expired", "cancelled"):
                    return dict(batch)
                await asyncio.sleep(0.05)


@pytest.fixture
async def publisher(stub_server: Server) -> AsyncIterator[Publisher]:
    async with connected(stub_server) as wire:
        yield Publisher(wire.client, wire.errors)


async def test_a_batch_over_nats_alone(publisher: Publisher) -> None:
    name = ident = uuid.uuid4().hex
    content = jsonl(line(number) for number in range(300))
    num_chunks = await publisher.store(name, content)
    assert num_chunks > 1
    await publisher.submit(ident, name, content, num_chunks, metadata={"from": "nats"})
    batch = await publisher.ended(ident)
    assert batch["status"] == "completed", batch
    assert batch["counts"] == {"total": 300, "completed": 300}
    assert batch["metadata"] == {"from": "nats"}
    output = b""
    for number in range(batch["output_chunks"]):
        output += await publisher.read("OBJ_files", f"{CHUNKS}.{batch['output_file']}.{number}") or b""
    answers = [json.loads(each) for each in output.splitlines()]
    assert sorted(each["custom_id"] for each in answers) == sorted(f"line-{number}" for number in range(300))
    assert not publisher.errors


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"digest": "00"}, "digest"),
        ({"chunks": 2}, "chunks"),
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"chunks": 0}, None),
    ],
)
async def test_a_bad_submission_fails_and_says_why(
    publisher: Publisher, fields: dict[str, Any], param: str | None
) -> None:
    name = ident = uuid.uuid4().hex
    content = jsonl([line(1)])
    await publisher.store(name, content)
    await publisher.submit(ident, name, content, **({"num_chunks": 1} | fields))
    batch = await publisher.ended(ident)
    assert batch["status"] == "failed"
    assert batch["problems"][0].get("param") == param


@pytest.mark.parametrize(
    "subject",
    [
        f"$O.files.C.{TENANT}.x.0",
        f"$O.files.M.{PUBLISHER}",
        "$O.files.C.~journal.x.0",
        f"$KV.batches.submit.{TENANT}.x",
        f"$KV.batches.batch.{PUBLISHER}.x",
        f"$JS.API.DIRECT.GET.KV_batches.$KV.batches.batch.{TENANT}.x",
        f"$JS.API.DIRECT.GET.OBJ_files.$O.files.C.{TENANT}.x.0",
        "$JS.API.DIRECT.GET.OBJ_files",
        "$JS.API.STREAM.PURGE.OBJ_files",
    ],
)
async def test_what_is_not_its_own_is_refused(publisher: Publisher, subject: str) -> None:
    await publisher.client.publish(subject, b"{}")
    assert "permissions violation" in await publisher.refused()


async def test_a_rollup_removes_nothing(publisher: Publisher) -> None:
    """It would empty the whole stream."""
    name = uuid.uuid4().hex
    await publisher.store(name, b"precious")
    answer = await publisher.client.request(f"{CHUNKS}.{name}.1", b"x", timeout=60, headers={"Nats-Rollup": "all"})
    assert "rollup" in json.loads(answer.data)["error"]["description"]
    assert await publisher.read("OBJ_files", f"{CHUNKS}.{name}.0") == b"precious"
