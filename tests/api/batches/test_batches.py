"""Batches from the API's side: their life, their results, and what is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from harness.batches import ENDPOINT, BatchClient, jsonl, line
from harness.scripted_worker import Turn, failing, hello, silent

from inferflux.api.batches import runner
from inferflux.broker.errors import Code
from inferflux.config.settings import GuardrailSettings, LoggingSettings


async def test_every_line_is_answered_once(client: BatchClient) -> None:
    batch = await client.submit(jsonl(line(number) for number in range(300)), metadata={"job": "nightly"})
    assert batch["status"] == "validating"
    assert batch["metadata"] == {"job": "nightly"}
    batch = await client.until(batch["id"], "completed")
    assert batch["request_counts"] == {"total": 300, "completed": 300, "failed": 0}
    assert batch["usage"]["input_tokens"] == 900
    assert batch["usage"]["output_tokens"] == 600
    assert batch["error_file_id"] is None
    assert batch["errors"] is None
    assert batch["model"] == "org/small"
    lines = await client.lines(batch["output_file_id"])
    assert sorted(each["custom_id"] for each in lines) == sorted(f"line-{number}" for number in range(300))
    first = lines[0]
    assert first["response"]["status_code"] == 200
    assert first["response"]["body"]["choices"][0]["message"]["content"] == "Hello"
    assert first["response"]["body"]["service_tier"] == "flex"
    assert first["error"] is None


async def test_lines_are_counted_under_the_key_that_submitted_them(client: BatchClient, api: Any) -> None:
    await client.until((await client.submit(jsonl(map(line, range(2)))))["id"], "completed")
    principal = api.parts.control.tenants.authenticate("key-all", 0.0)
    assert [turn.prompt.key for turn in api.worker.turns] == [principal.key_id] * 2


async def test_nothing_is_left_of_a_batch_but_its_files(client: BatchClient, api: Any) -> None:
    batch = await client.until((await client.submit(jsonl([line(1)])))["id"], "completed")
    names = await api.parts.files.objects.chunks.names()
    assert sorted(names) == sorted(f"acme.{batch[name]}" for name in ("input_file_id", "output_file_id"))
    assert not api.hub.tape.read(api.worker.turns[0].key, 0).frames


async def test_a_line_that_fails_goes_to_the_error_file(client: BatchClient, api: Any) -> None:
    async def script(turn: Turn) -> None:
        if "Prompt 1" in str(turn.prompt):
            await failing(Code.CONTEXT_LENGTH_EXCEEDED, "too long", param="messages")(turn)
        else:
            await hello(turn)

    api.worker.script = script
    batch = await client.until((await client.submit(jsonl(line(number) for number in range(3))))["id"], "completed")
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    (error,) = await client.lines(batch["error_file_id"])
    assert error["custom_id"] == "line-1"
    assert error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert len(await client.lines(batch["output_file_id"])) == 2


@pytest.mark.parametrize("code", [Code.NO_BACKEND, Code.QUEUE_TIMEOUT, Code.RATE_LIMIT_EXCEEDED])
async def test_what_says_nothing_about_a_line_is_asked_again(client: BatchClient, api: Any, code: Code) -> None:
    seen: set[str] = set()

    async def script(turn: Turn) -> None:
        text = str(turn.prompt.messages)  # type: ignore[union-attr]
        if text in seen:
            await hello(turn)
        else:
            seen.add(text)
            await failing(code, "not now")(turn)

    api.worker.script = script
    batch = await client.until((await client.submit(jsonl(line(number) for number in range(4))))["id"], "completed")
    assert batch["request_counts"] == {"total": 4, "completed": 4, "failed": 0}


async def test_cancel_keeps_what_is_done(client: BatchClient, api: Any) -> None:
    async def script(turn: Turn) -> None:
        await (hello if "Prompt 0" in str(turn.prompt) else silent)(turn)

    api.worker.script = script
    batch = await client.submit(jsonl(line(number) for number in range(5)))
    await _until_counts(client, batch["id"], completed=1)
    answer = await api.client.post(f"/v1/batches/{batch['id']}/cancel")
    assert answer.json()["status"] == "cancelling"
    batch = await client.until(batch["id"], "cancelled")
    assert batch["request_counts"] == {"total": 5, "completed": 1, "failed": 0}
    assert [each["custom_id"] for each in await client.lines(batch["output_file_id"])] == ["line-0"]
    assert batch["error_file_id"] is None
    assert len(api.worker.cancelled) == 4
    again = await api.client.post(f"/v1/batches/{batch['id']}/cancel")
    assert again.json()["status"] == "cancelled"


async def test_a_window_that_is_over_ends_what_runs(client: BatchClient, api: Any) -> None:
    api.worker.script = silent
    batch = await client.until((await client.submit(jsonl(map(line, range(3))), window="1s"))["id"], "expired")
    assert batch["request_counts"]["completed"] == 0


async def test_expiry_says_which_lines_were_not_run(apis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api = await apis.start()
    client = BatchClient(api)

    async def script(turn: Turn) -> None:
        await (hello if "Prompt 0" in str(turn.prompt) else silent)(turn)

    api.worker.script = script
    batch = await client.submit(jsonl(map(line, range(3))))
    await _until_counts(client, batch["id"], completed=1)
    # For the replica that takes it over the window is past.
    monkeypatch.setattr(runner, "time", SimpleNamespace(time=lambda: batch["expires_at"] + 1.0))
    await apis.start(beside=api)
    await api.parts.office.close()
    batch = await client.until(batch["id"], "expired")
    assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 0}
    errors = await client.lines(batch["error_file_id"])
    assert sorted(each["custom_id"] for each in errors) == ["line-1", "line-2"]
    assert {each["error"]["code"] for each in errors} == {"batch_expired"}
    assert len(await client.lines(batch["output_file_id"])) == 1


async def test_completions_and_embeddings_too(client: BatchClient, api: Any) -> None:
    texts = [
        {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Once", "max_tokens": 3}}
    ]
    batch = await client.until((await client.submit(jsonl(texts), "/v1/completions"))["id"], "completed")
    (done,) = await client.lines(batch["output_file_id"])
    assert done["response"]["body"]["choices"][0]["text"] == "Hello"

    async def embed(turn: Turn) -> None:
        await turn.end(embedding=(1.0, 2.0))

    api.worker.script = embed
    inputs = [
        {"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x", "dimensions": size}}
        | {"custom_id": f"e{size}"}
        for size in (2, 3)
    ]
    batch = await client.until((await client.submit(jsonl(inputs), "/v1/embeddings"))["id"], "completed")
    (done,) = await client.lines(batch["output_file_id"])
    assert done["response"]["body"]["data"][0]["embedding"] == [1.0, 2.0]
    (error,) = await client.lines(batch["error_file_id"])
    assert error["response"]["body"]["error"]["param"] == "dimensions"


BAD = {
    "empty": (b"", "empty_file", None, None),
    "blank": (b"\n  \n", "empty_file", None, None),
    "not JSONL": (b"hello\n", "invalid_json_line", None, 1),
    "an array": (b"[1, 2]\n", "invalid_json_line", None, 1),
    "broken last line": (jsonl([line(1)]) + b'{"custom_id": "x", "meth', "invalid_json_line", None, 2),
    "not UTF-8": (jsonl([line(1)]) + b'{"custom_id": "\xff"}', "invalid_json_line", None, 2),
    "missing custom_id": (
        jsonl([{"method": "POST", "url": ENDPOINT, "body": {}}]),
        "missing_required_parameter",
        "custom_id",
        1,
    ),
    "empty custom_id": (jsonl([line(1) | {"custom_id": ""}]), "invalid_json_line", "custom_id", 1),
    "duplicate": (jsonl([line(1), line(2), line(1)]), "duplicate_custom_id", "custom_id", 3),
    "method": (jsonl([line(1) | {"method": "GET"}]), "invalid_method", "method", 1),
    "wrong endpoint": (jsonl([line(1, url="/v1/completions")]), "invalid_url", "url", 1),
    "unknown model": (jsonl([line(1, model="gpt-9")]), "model_not_found", "body.model", 1),
    "mixed models": (jsonl([line(1, model="small"), line(2, model="big")]), "mismatched_model", "body.model", 2),
    "unknown field": (jsonl([line(1) | {"extra": 1}]), "unknown_parameter", "extra", 1),
    "out of range": (jsonl([line(1, temperature=9)]), "invalid_request", "body.temperature", 1),
    "no messages": (jsonl([line(1, messages=[])]), "invalid_request", "body.messages", 1),
    "stream": (jsonl([line(1, stream=True)]), "unsupported_parameter", "body.stream", 1),
    "too long": (jsonl([line(1), line(2, user="x" * 1_000_001), line(3)]), "line_too_long", None, 2),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_file_is_refused_before_anything_runs(client: BatchClient, api: Any, name: str) -> None:
    content, code, param, number = BAD[name]
    batch = await client.submit(content)
    async with asyncio.timeout(30):
        while (batch := await client.get(batch["id"]))["status"] == "validating":
            await asyncio.sleep(0.01)
    assert batch["status"] == "failed"
    problem = batch["errors"]["data"][0]
    assert (problem["code"], problem["param"], problem["line"]) == (code, param, number), problem
    assert problem["message"].endswith(".") or "known:" in problem["message"] or ":" in problem["message"]
    assert batch["output_file_id"] is None
    assert not api.worker.turns


async def test_bom_crlf_and_a_last_line_without_an_end_are_fine(client: BatchClient) -> None:
    content = b"\xef\xbb\xbf" + jsonl(map(line, range(3))).replace(b"\n", b"\r\n").removesuffix(b"\r\n")
    batch = await client.until((await client.submit(content))["id"], "completed")
    assert batch["request_counts"]["completed"] == 3


async def test_the_first_hundred_problems_are_told(client: BatchClient) -> None:
    batch = await client.submit(b"nonsense\n" * 150)
    async with asyncio.timeout(30):
        while (batch := await client.get(batch["id"]))["status"] == "validating":
            await asyncio.sleep(0.01)
    assert len(batch["errors"]["data"]) == 100
    assert batch["errors"]["total"] == 150


async def test_an_alias_is_the_model(client: BatchClient) -> None:
    lines = [line(1, model="small"), line(2, model="org/small"), line(3)]
    batch = await client.until((await client.submit(jsonl(lines)))["id"], "completed")
    assert batch["request_counts"]["completed"] == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "30d"}, "completion_window"),
        ({"input_file_id": "file-none"}, "file_id"),
        ({"metadata": {"x": "y" * 600}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "expires_after.seconds"),
    ],
)
async def test_a_bad_batch_names_the_field(client: BatchClient, fields: dict[str, Any], param: str) -> None:
    file = await client.upload(jsonl([line(1)]))
    body = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"} | fields
    answer = await client.api.client.post("/v1/batches", json=body)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["param"] == param


async def test_results_are_no_input(client: BatchClient) -> None:
    batch = await client.until((await client.submit(jsonl([line(1)])))["id"], "completed")
    body = {"input_file_id": batch["output_file_id"], "endpoint": ENDPOINT, "completion_window": "24h"}
    answer = await client.api.client.post("/v1/batches", json=body)
    assert answer.status_code == 400
    assert "batch_output" in answer.json()["error"]["message"]


async def test_pages_go_from_the_newest_on(client: BatchClient) -> None:
    ids = [(await client.submit(jsonl([line(1)])))["id"] for _ in range(5)]
    first = (await client.api.client.get("/v1/batches?limit=2")).json()
    assert [each["id"] for each in first["data"]] == ids[:-3:-1]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[4], ids[3], True)
    rest = (await client.api.client.get(f"/v1/batches?limit=10&after={first['last_id']}")).json()
    assert [each["id"] for each in rest["data"]] == ids[2::-1]
    assert not rest["has_more"]
    assert (await client.api.client.get("/v1/batches?limit=0")).status_code == 400


async def test_another_tenant_sees_nothing(client: BatchClient, api: Any) -> None:
    batch = await client.until((await client.submit(jsonl([line(1)])))["id"], "completed")
    other = {"authorization": "Bearer key-bounded"}
    for path in (
        f"/v1/batches/{batch['id']}",
        f"/v1/files/{batch['input_file_id']}",
        f"/v1/files/{batch['output_file_id']}/content",
    ):
        assert (await api.client.get(path, headers=other)).status_code == 404
    assert (await api.client.get("/v1/batches", headers=other)).json()["data"] == []
    assert (await api.client.get("/v1/files", headers=other)).json()["data"] == []
    assert (await api.client.post(f"/v1/batches/{batch['id']}/cancel", headers=other)).status_code == 404
    assert (await api.client.delete(f"/v1/files/{batch['input_file_id']}", headers=other)).status_code == 404


async def test_a_tenant_with_a_bound_keeps_room_for_others(client: BatchClient, api: Any) -> None:
    """`bounded` may have two requests queued; its batch takes one place at a time."""
    content = jsonl(line(number) for number in range(6))
    file = await client.upload(content, key="key-bounded")
    headers = {"authorization": "Bearer key-bounded"}
    body = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
    batch = (await api.client.post("/v1/batches", json=body, headers=headers)).json()
    async with asyncio.timeout(30):
        while batch["status"] != "completed":
            batch = (await api.client.get(f"/v1/batches/{batch['id']}", headers=headers)).json()
            await asyncio.sleep(0.01)
            assert sum(api.hub.prompts.backlog().values()) <= 1
    assert batch["request_counts"]["completed"] == 6


async def _until_counts(client: BatchClient, ident: str, completed: int) -> None:
    async with asyncio.timeout(30):
        while (await client.get(ident))["request_counts"]["completed"] < completed:
            await asyncio.sleep(0.02)


async def test_a_line_that_a_guardrail_refuses_fails_alone_and_is_audited(apis: Any, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    settings = msgspec.structs.replace(
        apis.settings,
        guardrails=GuardrailSettings(blocklist=("prompt 1",)),
        logging=LoggingSettings(audit_log=str(path)),
    )
    api = await apis.start(settings)
    client = BatchClient(api)
    batch = await client.until((await client.submit(jsonl(line(number) for number in range(3))))["id"], "completed")
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    (error,) = await client.lines(batch["error_file_id"])
    assert error["response"]["body"]["error"]["code"] == "content_filter"
    await api.parts.anchorage.close()
    (denied,) = [each for each in map(msgspec.json.decode, path.read_bytes().splitlines()) if "tenant" in each]
    assert (denied["source"], denied["tenant"], denied["detail"]["guardrail"]) == ("batch", "acme", "blocklist")
