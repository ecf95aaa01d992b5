"""What of the HTTP traffic reaches the audit log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inferflux.config.chain import Head, Verifier
from inferflux.config.settings import LoggingSettings, Settings

PROMPT = "words that nobody may read"


class Audited:
    """A replica with an audit log, and its lines once it has stopped."""

    def __init__(self, api: Any, path: Path) -> None:
        self.api = api
        self.path = path

    async def lines(self) -> list[dict[str, Any]]:
        """All that was recorded so far; ends the log."""
        await self.api.parts.anchorage.close()
        return [msgspec.json.decode(line) for line in self.path.read_bytes().splitlines()]


@pytest.fixture
async def audited(apis: Any, tmp_path: Path) -> Audited:
    return await start(apis, tmp_path)


async def start(apis: Any, tmp_path: Path, **logging: Any) -> Audited:
    path = tmp_path / "audit.log"
    settings: Settings = apis.settings
    settings = msgspec.structs.replace(settings, logging=LoggingSettings(audit_log=str(path), **logging))
    return Audited(await apis.start(settings), path)


async def test_denied_requests_are_recorded_with_their_reason_and_without_the_prompt(audited: Audited) -> None:
    api, messages = audited.api, [{"role": "user", "content": PROMPT}]
    statuses = [
        (await api.chat(key="no such key", messages=messages)).status_code,
        (await api.chat(key="key-read", messages=messages)).status_code,
        (await api.chat(key="key-other-model", model="small", messages=messages)).status_code,
        (await api.chat(key="key-bounded", service_tier="priority", messages=messages)).status_code,
        (await api.chat(messages=messages)).status_code,
        (await api.client.get("/v1/nothing")).status_code,
    ]
    assert statuses == [401, 403, 403, 403, 200, 404]
    lines = await audited.lines()
    denied = [line for line in lines if line["action"] == "request.refuse"]
    assert [line["detail"]["code"] for line in denied] == [
        "invalid_api_key",
        "insufficient_scope",
        "model_not_allowed",
        "class_not_allowed",
    ]
    assert {line["verdict"] for line in denied} == {"denied"}
    assert [line.get("tenant") for line in denied[:2]] == [None, "acme"]
    assert all(line["detail"]["path"] == "/v1/chat/completions" and line["source"] for line in denied)
    text = audited.path.read_text()
    assert PROMPT not in text
    assert "no such key" not in text
    assert "key-read" not in text


async def test_every_change_is_recorded_and_reading_is_not(audited: Audited) -> None:
    api = audited.api
    await api.client.get("/v1/admin/fairness")
    await api.client.put("/v1/admin/fairness", json={"weights": {"acme": 3}})
    await api.client.put("/v1/admin/fairness", json={"weights": {"acme": -3}})
    await api.client.delete("/v1/admin/requests/nothing")
    denied = await api.client.put("/v1/admin/fairness", json={}, headers={"authorization": "Bearer key-generate"})
    assert denied.status_code == 403
    changes = [line for line in await audited.lines() if line["action"] == "admin.change"]
    assert [(line["verdict"], line["detail"]["method"]) for line in changes] == [
        ("allowed", "PUT"),
        ("failed", "PUT"),
        ("failed", "DELETE"),
        ("denied", "PUT"),
    ]
    assert changes[0]["tenant"] == "acme"
    assert "code" in changes[1]["detail"]


async def test_the_head_is_anchored_and_the_file_verifies(audited: Audited) -> None:
    await audited.api.chat(key="nobody")
    lines = await audited.lines()
    data = (await audited.api.client.get("/v1/admin/audit")).json()["data"]
    (head,) = msgspec.convert(data, list[Head])
    assert (head.seq, head.hash) == (len(lines), lines[-1]["hash"])
    verifier = Verifier()
    with audited.path.open("rb") as raw:
        assert list(verifier.read("audit.log", raw, [head])) == []
    assert list(verifier.close([head])) == []


@pytest.mark.parametrize("required", [True, False])
async def test_a_log_that_cannot_be_written_refuses_only_where_it_is_required(
    apis: Any, tmp_path: Path, required: bool
) -> None:
    audited = await start(apis, tmp_path, audit_required=required)
    api, audit = audited.api, audited.api.parts.control.audit
    async with asyncio.timeout(30):
        while audit.head is None:
            await asyncio.sleep(0.005)
    audit.broken = True
    response = await api.chat()
    assert response.status_code == (503 if required else 200)
    if required:
        assert response.json()["error"]["code"] == "audit_unavailable"
    assert (await api.client.get("/v1/models")).status_code == 200
    audit.broken = False
    assert (await api.chat()).status_code == 200
