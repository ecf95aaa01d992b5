"""The policy store: documents that change under races, pass through a seal, and are followed."""

from __future__ import annotations

import asyncio

import pytest

from inferflux.broker.errors import RevisionConflict
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import BUCKET_POLICY
from inferflux.broker.wire.policies import Fairness
from inferflux.registry.store import Document, Follower, PolicyStore, RecordRefused, Seal

KEY = "fairness"


class Mirror(Seal):
    """Stores a body backwards with its revision, and takes back nothing else."""

    def close(self, bucket: str, key: str, body: bytes | None, revision: int) -> bytes | None:
        return None if body is None else f"{bucket}/{key}:".encode() + body[::-1]

    def open(self, bucket: str, key: str, stored: bytes | None, revision: int) -> bytes | None:
        mark = f"{bucket}/{key}:".encode()
        if stored is None:
            return None
        if not stored.startswith(mark):
            raise RecordRefused("no mirror image")
        return stored.removeprefix(mark)[::-1]


@pytest.fixture(params=[None, Mirror()], ids=["plain", "sealed"])
def store(request: pytest.FixtureRequest) -> PolicyStore:
    return PolicyStore(MemoryBroker(MemoryHub()), request.param)


def document(store: PolicyStore) -> Document[Fairness]:
    return Document(store, BUCKET_POLICY, KEY, Fairness())


async def test_changes_at_the_same_time_are_all_kept(store: PolicyStore) -> None:
    fairness = document(store)
    assert await fairness.read() == (Fairness(), 0)

    async def add(number: int) -> None:
        await fairness.change(lambda now: Fairness(weights={**now.weights, f"tenant{number}": 2.0}))

    await asyncio.gather(*(add(number) for number in range(10)))
    assert len((await fairness.read())[0].weights) == 10


async def test_a_change_that_changes_nothing_is_not_stored(store: PolicyStore) -> None:
    fairness = document(store)
    await fairness.change(lambda _: Fairness(weights={"acme": 2.0}))
    _, revision = await fairness.read()
    await fairness.change(lambda _: Fairness(weights={"acme": 2.0}))
    assert (await fairness.read())[1] == revision


async def test_raw_entries_are_fenced_listed_and_deleted(store: PolicyStore) -> None:
    await store.write(BUCKET_POLICY, "a", b"1", 0)
    with pytest.raises(RevisionConflict):
        await store.write(BUCKET_POLICY, "a", b"2", 0)
    body, revision = await store.read(BUCKET_POLICY, "a")
    assert body == b"1"
    assert [(entry.key, entry.value) for entry in await store.entries(BUCKET_POLICY)] == [("a", b"1")]
    await store.write(BUCKET_POLICY, "a", None, revision)
    assert await store.read(BUCKET_POLICY, "a") == (None, 0)


async def test_followers_hear_documents_and_prefixes(store: PolicyStore) -> None:
    heard: asyncio.Queue[object] = asyncio.Queue()
    follower = Follower(store, BUCKET_POLICY)
    follower.follow(document(store), heard.put_nowait)
    follower.follow_all("tenant.", lambda key, body: heard.put_nowait((key, body)))
    await document(store).change(lambda _: Fairness(weights={"acme": 2.0}))
    running = asyncio.create_task(follower.run())
    try:
        async with asyncio.timeout(30):
            assert await heard.get() == Fairness(weights={"acme": 2.0})
            await follower.listed.wait()
            await store.write(BUCKET_POLICY, "tenant.a", b"x", 0)
            assert await heard.get() == ("tenant.a", b"x")
            _, revision = await store.read(BUCKET_POLICY, "tenant.a")
            await store.write(BUCKET_POLICY, "tenant.a", None, revision)
            assert await heard.get() == ("tenant.a", None)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_refused_entry_leaves_the_last_one_in_force() -> None:
    broker = MemoryBroker(MemoryHub())
    store = PolicyStore(broker, Mirror())
    heard: asyncio.Queue[Fairness] = asyncio.Queue()
    follower = Follower(store, BUCKET_POLICY)
    follower.follow(document(store), heard.put_nowait)
    running = asyncio.create_task(follower.run())
    try:
        async with asyncio.timeout(30):
            await document(store).change(lambda _: Fairness(weights={"acme": 2.0}))
            assert (await heard.get()).weights == {"acme": 2.0}
            await (await broker.bucket(BUCKET_POLICY)).put(KEY, b'{"weights": {"acme": 9}}')
            with pytest.raises(RecordRefused):
                await document(store).read()
            assert await store.entries(BUCKET_POLICY) == []
        assert heard.empty()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
