"""The OpenAI SDK's files and batches calls, unchanged, against a running server with the real model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from harness.server import KEY, Server
from openai.types import Batch

MODEL = "smollm2"

pytestmark = [pytest.mark.model, pytest.mark.integration]


@pytest.fixture
def client(model_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=model_server.url + "/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def write(path: Path, lines: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def chat_line(number: int, **body: object) -> dict[str, object]:
    wanted = {"model": MODEL, "messages": [{"role": "user", "content": f"Say the number {number}."}], "max_tokens": 8}
    return {"custom_id": f"n{number}", "method": "POST", "url": "/v1/chat/completions", "body": wanted | body}


def wait(client: openai.OpenAI, batch: Batch) -> Batch:
    deadline_s = time.monotonic() + 180
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline_s, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def test_a_batch_from_upload_to_results(client: openai.OpenAI, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [chat_line(number, temperature=0) for number in range(6)])
    with path.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    assert uploaded.bytes == path.stat().st_size
    assert uploaded.filename == "in.jsonl"
    assert client.files.retrieve(uploaded.id) == uploaded
    assert uploaded.id in [each.id for each in client.files.list()]
    assert client.files.content(uploaded.id).read() == path.read_bytes()

    batch = client.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"job": "numbers"},
    )
    assert batch.object == "batch"
    assert batch.id in [each.id for each in client.batches.list(limit=5)]
    batch = wait(client, batch)
    assert batch.status == "completed", batch
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (6, 6, 0)
    assert batch.metadata == {"job": "numbers"}
    assert batch.completed_at is not None
    assert batch.output_file_id is not None
    answers = [json.loads(each) for each in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(each["custom_id"] for each in answers) == [f"n{number}" for number in range(6)]
    assert all(each["response"]["body"]["choices"][0]["message"]["content"] for each in answers)
    alone = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Say the number 3."}], max_tokens=8, temperature=0
    )
    third = next(each["response"]["body"] for each in answers if each["custom_id"] == "n3")
    assert third["usage"]["prompt_tokens"] == alone.usage.prompt_tokens  # type: ignore[union-attr]
    assert client.files.delete(uploaded.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(uploaded.id)


def test_a_bad_file_fails_with_its_lines(client: openai.OpenAI, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [chat_line(1), chat_line(1), chat_line(2, model="gpt-9")])
    with path.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = wait(client, batch)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(each.code, each.line) for each in batch.errors.data] == [
        ("duplicate_custom_id", 2),
        ("model_not_found", 3),
    ]


def test_cancel(client: openai.OpenAI, tmp_path: Path) -> None:
    lines = [chat_line(number, max_tokens=400, ignore_eos=True) for number in range(40)]
    with write(tmp_path / "long.jsonl", lines).open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h")
    while client.batches.retrieve(batch.id).status == "validating":
        time.sleep(0.05)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = wait(client, batch)
    assert batch.status == "cancelled"
    assert batch.request_counts is not None
    assert batch.request_counts.completed < len(lines), "it was cancelled and ran to its end all the same"
    assert batch.error_file_id is None
