"""A client of files and batches, and the lines that it sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

ENDPOINT = "/v1/chat/completions"


def line(number: int, *, custom_id: str | None = None, url: str = ENDPOINT, **body: Any) -> dict[str, Any]:
    """A line of a batch's file."""
    body = {"messages": [{"role": "user", "content": f"Prompt {number}"}], "max_tokens": 4} | body
    return {"custom_id": custom_id or f"line-{number}", "method": "POST", "url": url, "body": body}


def jsonl(lines: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


class BatchClient:
    """What a client does with files and batches."""

    def __init__(self, api: Any) -> None:
        self.api = api

    async def upload(self, content: bytes, *, key: str | None = None, purpose: str = "batch", **fields: str) -> Any:
        answer = await self.api.client.post(
            "/v1/files",
            files={"file": ("in.jsonl", content)},
            data={"purpose": purpose, **fields},
            headers={"authorization": f"Bearer {key}"} if key else {},
        )
        return answer.json() | {"status_code": answer.status_code}

    async def submit(self, content: bytes, endpoint: str = ENDPOINT, window: str = "24h", **fields: Any) -> Any:
        file = await self.upload(content)
        body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": window, **fields}
        answer = await self.api.client.post("/v1/batches", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def get(self, ident: str) -> Any:
        answer = await self.api.client.get(f"/v1/batches/{ident}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until(self, ident: str, *statuses: str) -> Any:
        """The batch, once it has one of these statuses."""
        async with asyncio.timeout(60):
            while (batch := await self.get(ident))["status"] not in statuses:
                assert batch["status"] not in ("failed", "completed", "expired", "cancelled"), batch
                await asyncio.sleep(0.02)
        return batch

    async def lines(self, file_id: str | None) -> list[Any]:
        """What a result file holds."""
        if file_id is None:
            return []
        answer = await self.api.client.get(f"/v1/files/{file_id}/content")
        assert answer.status_code == 200, answer.text
        return [json.loads(each) for each in answer.content.splitlines()]
