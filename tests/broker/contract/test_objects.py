"""The object store: chunked, checked, and gone without a trace when deleted."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from harness.world import World

from inferflux.broker.errors import ObjectDamaged, RevisionConflict
from inferflux.broker.objects import CHUNK_BYTES, Objects
from inferflux.broker.subjects import OBJECTS_FILES, object_name

_numbers = itertools.count()


@pytest.fixture
def name() -> str:
    """An object that no other test has."""
    return object_name("a.b c", f"file-{next(_numbers)}")


@pytest.fixture
async def objects(world: World) -> Objects:
    return Objects((await world.broker("api")).chunks(OBJECTS_FILES))


async def read(objects: Objects, name: str) -> bytes:
    info = await objects.info(name)
    assert info is not None
    return b"".join([chunk async for chunk in objects.read(info)])


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
async def test_what_was_written_is_read(objects: Objects, name: str, size: int) -> None:
    data = hashlib.shake_256(b"seed").digest(size)
    writer = objects.write(name)
    for start in range(0, size, 100_000):
        await writer.add(data[start : start + 100_000])
    assert await objects.info(name) is None
    info = await writer.close({"filename": "x.jsonl"})
    assert (info.size, info.chunks, info.metadata) == (size, -(-size // CHUNK_BYTES), {"filename": "x.jsonl"})
    assert await objects.info(name) == info
    assert await read(objects, name) == data


async def test_a_name_is_taken_once(objects: Objects, name: str) -> None:
    await objects.write(name).close({})
    with pytest.raises(RevisionConflict):
        await objects.write(name).close({})


async def test_delete_leaves_nothing(objects: Objects, name: str) -> None:
    writer = objects.write(name)
    await writer.add(b"x" * (CHUNK_BYTES + 1))
    await writer.close({})
    assert (await objects.chunks.names())[name] == 2
    assert await objects.delete(name)
    assert not await objects.delete(name)
    assert name not in await objects.chunks.names()
    assert name not in await objects.chunks.described()
    assert await objects.info(name) is None


async def test_discard_leaves_nothing(objects: Objects, name: str) -> None:
    writer = objects.write(name)
    await writer.add(b"x" * (2 * CHUNK_BYTES))
    await writer.discard()
    assert name not in await objects.chunks.names()


async def test_a_tenant_sees_its_own(objects: Objects) -> None:
    number = next(_numbers)
    mine, other = f"tenant{number}", f"tenant{number}.x"
    for tenant, ident in ((mine, "file-2"), (mine, "file-1"), (other, "file-3")):
        await objects.write(object_name(tenant, ident)).close({})
    assert await objects.names(mine) == ["file-1", "file-2"]
    assert await objects.names(other) == ["file-3"]


@pytest.mark.parametrize("number", [0, 1])
async def test_a_changed_chunk_is_noticed(objects: Objects, name: str, number: int) -> None:
    writer = objects.write(name)
    await writer.add(b"x" * (2 * CHUNK_BYTES))
    await writer.close({})
    await objects.chunks.put(name, number, b"y" * CHUNK_BYTES)
    with pytest.raises(ObjectDamaged):
        await read(objects, name)


async def test_a_missing_chunk_is_noticed(objects: Objects, name: str) -> None:
    writer = objects.write(name)
    await writer.add(b"x" * CHUNK_BYTES)
    await writer.close({})
    await objects.chunks.purge(name)
    with pytest.raises(ObjectDamaged, match="missing"):
        await read(objects, name)


async def test_of_two_writers_of_a_fresh_chunk_one_wins(objects: Objects, name: str) -> None:
    await objects.chunks.put(name, 0, b"first", fresh=True)
    with pytest.raises(RevisionConflict):
        await objects.chunks.put(name, 0, b"second", fresh=True)
    assert await objects.chunks.get(name, 0) == b"first"
    assert await objects.chunks.stored_s(name, 0) is not None
    assert await objects.chunks.get(name, 1) is None
    assert await objects.chunks.stored_s(name, 1) is None
