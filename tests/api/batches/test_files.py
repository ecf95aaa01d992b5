"""Files: uploads and downloads in pieces, quotas, retention."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
from harness.asgi import Call
from harness.batches import BatchClient, jsonl, line

from inferflux.broker.errors import StoreFull
from inferflux.broker.objects import CHUNK_BYTES
from inferflux.broker.subjects import object_name

BOUNDARY = "xyz"
KEY = "key-all"


def form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    """A multipart body; the part `file` has a file's name."""
    body = b""
    for name, value in parts:
        filename = b'; filename="a/b\\\\c.jsonl"' if name == "file" else b""
        body += b'--xyz\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + filename + b"\r\n\r\n"
        body += value + b"\r\n"
    return body + (b"--xyz--\r\n" if end else b"")


async def post(api: Any, body: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}") -> Any:
    return await api.client.post("/v1/files", content=body, headers={"content-type": content_type})


async def num_objects(api: Any) -> int:
    """Objects and chunks of no object."""
    chunks = api.parts.files.objects.chunks
    return len(set(await chunks.names()) | set(await chunks.described()))


async def test_a_file_comes_back_as_it_went(client: BatchClient) -> None:
    content = jsonl(line(number) for number in range(6000))
    assert len(content) > 3 * CHUNK_BYTES
    file = await client.upload(content)
    assert file["status_code"] == 200
    assert {name: file[name] for name in ("object", "bytes", "filename", "purpose", "status")} == {
        "object": "file",
        "bytes": len(content),
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
    }
    assert abs(file["expires_at"] - file["created_at"] - 30 * 24 * 3600) <= 1
    answer = await client.api.client.get(f"/v1/files/{file['id']}/content")
    assert answer.content == content
    assert answer.headers["content-length"] == str(len(content))
    shown = (await client.api.client.get(f"/v1/files/{file['id']}")).json()
    assert shown == {name: value for name, value in file.items() if name != "status_code"}


async def test_fields_may_come_in_any_order(api: Any) -> None:
    answer = await post(api, form(("file", b"x" * 100_000), ("purpose", b"batch")))
    assert answer.status_code == 200
    assert answer.json()["filename"] == "c.jsonl"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (form(("purpose", b"batch")), "file"),
        (form(("file", b"x")), "purpose"),
        (form(("file", b"x"), ("purpose", b"fine-tune")), "purpose"),
        (form(("file", b"x"), ("file", b"y"), ("purpose", b"batch")), "file"),
        (form(("file", b"x"), ("purpose", b"batch"), end=False), None),
        (form(("file", b"x"), ("purpose", b"b" * 20_000)), "purpose"),
        (form(("file", b"x"), ("purpose", b"\xff")), "purpose"),
        (b"nonsense", None),
        (
            form(
                ("purpose", b"batch"),
                ("expires_after[anchor]", b"created_at"),
                ("expires_after[seconds]", b"1"),
                ("file", b"x"),
            ),
            "expires_after.seconds",
        ),
        (form(("purpose", b"batch"), ("expires_after[anchor]", b"birth"), ("file", b"x")), "expires_after.anchor"),
    ],
)
async def test_a_bad_form_leaves_nothing(api: Any, body: bytes, param: str | None) -> None:
    answer = await post(api, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert await num_objects(api) == 0


@pytest.mark.parametrize(("kind", "status"), [("application/json", 415), ("multipart/form-data", 400)])
async def test_what_is_no_form_is_refused(api: Any, kind: str, status: int) -> None:
    assert (await post(api, b"{}", kind)).status_code == status


async def test_a_client_that_hangs_up_leaves_nothing(api: Any) -> None:
    headers = {"authorization": f"Bearer {KEY}", "content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    body = form(("purpose", b"batch"), ("file", b"x" * 2 * CHUNK_BYTES), end=False)
    call = Call(api.app, "POST", "/v1/files", body, headers, whole=False)
    async with asyncio.timeout(30):
        while not await num_objects(api):
            await asyncio.sleep(0.01)
    call.hang_up()
    await call.begin()
    assert call.status == 499
    assert await num_objects(api) == 0


async def test_lists_in_pages(client: BatchClient, api: Any) -> None:
    ids = [(await client.upload(b"x"))["id"] for _ in range(4)]
    page = (await api.client.get("/v1/files?limit=3")).json()
    assert [each["id"] for each in page["data"]] == ids[:0:-1]
    assert page["has_more"]
    rest = (await api.client.get(f"/v1/files?after={page['last_id']}")).json()
    assert [each["id"] for each in rest["data"]] == ids[:1]
    ascending = (await api.client.get("/v1/files?order=asc&purpose=batch")).json()
    assert [each["id"] for each in ascending["data"]] == ids
    assert (await api.client.get("/v1/files?purpose=batch_output")).json()["data"] == []
    for query in ("order=up", "limit=x", "after=file-none"):
        assert (await api.client.get(f"/v1/files?{query}")).status_code in (400, 404)


async def test_delete_is_for_good(client: BatchClient, api: Any) -> None:
    file = await client.upload(b"x" * (2 * CHUNK_BYTES))
    answer = await api.client.delete(f"/v1/files/{file['id']}")
    assert answer.json() == {"id": file["id"], "object": "file", "deleted": True}
    assert await num_objects(api) == 0
    for path in (f"/v1/files/{file['id']}", f"/v1/files/{file['id']}/content", "/v1/files/..%2F..", "/v1/files/%20"):
        assert (await api.client.get(path)).status_code == 404


async def test_a_file_that_a_batch_reads_stays(client: BatchClient, api: Any) -> None:
    await api.worker.leave()
    batch = await client.submit(jsonl([line(1)]))
    await client.until(batch["id"], "in_progress")
    answer = await api.client.delete(f"/v1/files/{batch['input_file_id']}")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "conflict"


async def test_the_bounds_of_size_and_quota(apis: Any) -> None:
    limits = msgspec.structs.replace(apis.settings.files, max_bytes=400_000, quota_bytes=1_000_000)
    api = await apis.start(msgspec.structs.replace(apis.settings, files=limits))
    client = BatchClient(api)
    large = await client.upload(b"x" * 400_001)
    assert (large["status_code"], large["error"]["code"]) == (413, "request_too_large")
    for _ in range(2):
        assert (await client.upload(b"x" * 400_000))["status_code"] == 200
    over = await client.upload(b"x" * 300_000)
    assert (over["status_code"], over["error"]["code"]) == (403, "quota_exceeded")
    assert await num_objects(api) == 2
    assert (await client.upload(b"x" * 300_000, key="key-bounded"))["status_code"] == 200


async def test_a_tenants_own_quota_changes_while_it_runs(client: BatchClient, api: Any) -> None:
    path = "/v1/admin/tenants/acme"
    wanted = {"file_quota_bytes": 100, "file_retention_s": 3600}
    answer = (await api.client.put(path, json=wanted)).json()
    assert {name: answer[name] for name in wanted} == wanted
    async with asyncio.timeout(30):
        while api.parts.control.tenants.tenant("acme").file_quota_bytes != 100:
            await asyncio.sleep(0.005)
    file = await client.upload(b"x" * 60)
    assert file["expires_at"] - file["created_at"] == 3600
    over = await client.upload(b"x" * 60)
    assert (over["status_code"], over["error"]["code"]) == (403, "quota_exceeded")
    assert (await client.upload(b"x" * 60, key="key-bounded"))["status_code"] == 200
    await api.client.delete(path)
    async with asyncio.timeout(30):
        while (await client.upload(b"x" * 60))["status_code"] != 200:
            await asyncio.sleep(0.005)


async def test_two_uploads_at_once_stay_within_the_quota(apis: Any) -> None:
    limits = msgspec.structs.replace(apis.settings.files, quota_bytes=1_000_000)
    api = await apis.start(msgspec.structs.replace(apis.settings, files=limits))
    client = BatchClient(api)
    answers = await asyncio.gather(*(client.upload(b"x" * 600_000) for _ in range(4)))
    assert sum(answer["status_code"] == 200 for answer in answers) <= 1
    assert await api.parts.files.used_bytes("acme") <= 1_000_000


async def test_a_full_store_is_said(client: BatchClient, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: Any, **__: Any) -> None:
        raise StoreFull("no space left")

    monkeypatch.setattr(type(api.parts.files.objects.chunks), "put", full)
    answer = await client.upload(b"x" * 100)
    assert (answer["status_code"], answer["error"]["code"]) == (507, "storage_full")


async def test_the_house_is_kept(client: BatchClient, api: Any) -> None:
    """Expired files go, and chunks that nobody described; what a batch reads, and what is young, stays."""
    housekeeper, chunks = api.parts.office.housekeeper, api.parts.files.objects.chunks
    done = await client.until((await client.submit(jsonl([line(1)])))["id"], "completed")
    await api.worker.leave()
    await client.upload(b"x")
    waiting = await client.submit(jsonl([line(1)]))
    await client.until(waiting["id"], "in_progress")
    await chunks.put(object_name("acme", "file-orphan"), 0, b"x")
    clock = chunks._broker.hub.objects["files"].clock
    await housekeeper.clean(clock() + 3000)
    assert await num_objects(api) == 5
    await housekeeper.clean(clock() + 4000)
    assert await num_objects(api) == 4
    await housekeeper.clean(time.time() + 31 * 24 * 3600)
    assert [each["id"] for each in (await api.client.get("/v1/files")).json()["data"]] == [waiting["input_file_id"]]
    listed = (await api.client.get("/v1/batches")).json()["data"]
    assert [each["id"] for each in listed] == [waiting["id"]]
    assert done["id"] != waiting["id"]
