"""KV buckets: revisions, expiry, watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from harness.world import WAIT_S, World

from inferflux.broker import subjects
from inferflux.broker.broker import Entry
from inferflux.broker.errors import RevisionConflict
from inferflux.broker.subjects import RequestKey


@pytest.fixture
def name(key: RequestKey) -> str:
    """An entry's key that no other test uses."""
    return f"{subjects.encode_token(key.request)}.entry"


async def test_put_get_delete(world: World, name: str) -> None:
    bucket = await (await world.broker("api")).bucket("registry")
    assert await bucket.get(name) is None
    first = await bucket.put(name, b"1")
    second = await bucket.put(name, b"2")
    assert second > first
    assert await bucket.get(name) == Entry(name, b"2", second)
    await bucket.delete(name)
    await bucket.delete(name)
    assert await bucket.get(name) is None


async def test_create_only_where_nothing_is(world: World, name: str) -> None:
    bucket = await (await world.broker("api")).bucket("registry")
    await bucket.create(name, b"1")
    with pytest.raises(RevisionConflict):
        await bucket.create(name, b"2")
    await bucket.delete(name)
    revision = await bucket.create(name, b"3")
    assert await bucket.get(name) == Entry(name, b"3", revision)


async def test_update_and_delete_at_a_revision(world: World, name: str) -> None:
    bucket = await (await world.broker("api")).bucket("registry")
    first = await bucket.create(name, b"1")
    second = await bucket.update(name, b"2", first)
    with pytest.raises(RevisionConflict):
        await bucket.update(name, b"3", first)
    with pytest.raises(RevisionConflict):
        await bucket.delete(name, first)
    await bucket.delete(name, second)
    with pytest.raises(RevisionConflict):
        await bucket.update(name, b"4", second)
    with pytest.raises(RevisionConflict):
        await bucket.delete(name, second)


async def test_entries_expire_where_they_may(world: World, name: str) -> None:
    bucket = await (await world.broker("api")).bucket("idempotency")
    lasting = await bucket.create(f"{name}.lasting", b"1", ttl_s=600)
    started_s = world.clock()
    await bucket.create(name, b"1", ttl_s=1)
    async with asyncio.timeout(WAIT_S):
        while await bucket.get(name) is not None:
            await world.elapse(0.1)
    assert world.clock() - started_s >= 1
    assert await bucket.get(f"{name}.lasting") == Entry(f"{name}.lasting", b"1", lasting)
    await bucket.create(name, b"2", ttl_s=60)


async def test_expiry_is_refused_elsewhere(world: World, name: str) -> None:
    bucket = await (await world.broker("api")).bucket("registry")
    with pytest.raises(ValueError, match="do not expire"):
        await bucket.put(name, b"1", ttl_s=1)


async def test_entries_lists_what_is_there(world: World, name: str) -> None:
    bucket = await (await world.broker("api")).bucket("tenants")
    await bucket.put(f"{name}.a", b"1")
    await bucket.put(f"{name}.b", b"2")
    await bucket.delete(f"{name}.a")
    await world.in_step()
    found = [entry for entry in await bucket.entries() if entry.key.startswith(name)]
    assert [(entry.key, entry.value) for entry in found] == [(f"{name}.b", b"2")]


async def test_watch_tells_what_is_and_what_changes(world: World, name: str) -> None:
    api, worker = await world.broker("api"), await world.broker("worker")
    bucket = await api.bucket("policy")
    await bucket.put(f"{name}.a", b"1")
    await world.in_step()
    watch = (await worker.bucket("policy")).watch()
    initial = await _until_listed(watch)
    assert initial[f"{name}.a"] == b"1"
    await bucket.put(f"{name}.b", b"2")
    await bucket.delete(f"{name}.a")
    await bucket.put(f"{name}.b", b"3")
    changes = [await _next(watch) for _ in range(3)]
    assert [(entry.key, entry.value) for entry in changes] == [
        (f"{name}.b", b"2"),
        (f"{name}.a", None),
        (f"{name}.b", b"3"),
    ]
    await watch.aclose()  # type: ignore[attr-defined]


async def test_watch_tells_of_expiry(world: World, name: str) -> None:
    worker, api = await world.broker("worker"), await world.broker("api")
    watch = (await api.bucket("workers")).watch()
    await _until_listed(watch)
    bucket = await worker.bucket("workers")
    await bucket.put(name, b"beat", ttl_s=1)
    assert (await _next(watch)).value == b"beat"
    revision = await bucket.put(name, b"beat 2", ttl_s=600)
    # On a machine that stood still the first has expired before it was renewed.
    while (renewed := await _next(watch)).value is None:
        pass
    assert renewed.value == b"beat 2"
    await world.elapse(1.5)
    assert await bucket.get(name) == Entry(name, b"beat 2", revision), "the time of the entry before ended it"
    await bucket.put(name, b"beat 3", ttl_s=1)
    assert (await _next(watch)).value == b"beat 3"
    await world.elapse(1.1)
    gone = await _next(watch)
    assert (gone.key, gone.value) == (name, None)
    await watch.aclose()  # type: ignore[attr-defined]


async def _next(watch: AsyncIterator[Entry | None]) -> Entry:
    async with asyncio.timeout(WAIT_S):
        entry = await anext(watch)
    assert entry is not None
    return entry


async def _until_listed(watch: AsyncIterator[Entry | None]) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    async with asyncio.timeout(WAIT_S):
        while (entry := await anext(watch)) is not None:
            found[entry.key] = entry.value
    return found


async def test_keys_come_without_values(world: World, name: str) -> None:
    bucket = await (await world.broker("api")).bucket("deadletters")
    await bucket.put(f"{name}.a", b"1")
    await bucket.put(f"{name}.b", b"2")
    await bucket.delete(f"{name}.a")
    await world.in_step()
    assert [key for key in await bucket.keys() if key.startswith(name)] == [f"{name}.b"]


async def test_workers_may_bury(world: World, name: str) -> None:
    worker, api = await world.broker("worker"), await world.broker("api")
    await (await worker.bucket("deadletters")).put(name, b"{}\nbody")
    entry = await (await api.bucket("deadletters")).get(name)
    assert entry is not None
    assert entry.value == b"{}\nbody"
