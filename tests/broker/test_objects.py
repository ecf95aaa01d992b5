"""Objects as other NATS clients see them, and streams that may not be emptied from outside."""

from __future__ import annotations

import nats
import pytest
from harness.nats import NatsServers
from harness.world import WAIT_S

from inferflux.broker import subjects, topology
from inferflux.broker.jetstream_api import JetStreamApi
from inferflux.broker.link import Link
from inferflux.broker.objects import CHUNK_BYTES, Objects
from inferflux.broker.subjects import BUCKET_BATCHES, OBJECTS_FILES, object_name

pytestmark = pytest.mark.integration


async def test_the_official_client_reads_an_object(nats: NatsServers) -> None:
    name, data = object_name("acme", "file-official"), b"x" * (2 * CHUNK_BYTES + 1)
    async with nats.broker("api") as broker:
        writer = Objects(broker.chunks(OBJECTS_FILES)).write(name)
        await writer.add(data)
        await writer.close({"filename": "a.jsonl"})
    assert (await _official(nats, name)) == data


async def _official(servers: NatsServers, name: str) -> bytes:
    login = servers.connection("admin")
    client = await nats.connect(servers.url, user=login.user, password=login.password, inbox_prefix=login.inbox_prefix)
    try:
        store = await client.jetstream().object_store(OBJECTS_FILES)
        return bytes((await store.get(name)).data or b"")
    finally:
        await client.close()


@pytest.mark.parametrize("stream", [subjects.object_stream(OBJECTS_FILES), subjects.kv_stream(BUCKET_BATCHES)])
async def test_rollups_of_an_earlier_version_are_forbidden(own_nats: NatsServers, stream: str) -> None:
    """A tenant may publish here: with rollups it could remove what is not its own."""
    link = Link(own_nats.connection("admin"), name="test", timeout_s=WAIT_S)
    await link.open(WAIT_S)
    js = JetStreamApi(link, timeout_s=WAIT_S)
    config = next(each for each in topology.streams(own_nats.settings) if each.name == stream)
    old = {"name": stream, "subjects": config.subjects, "storage": "file", "max_consumers": config.max_consumers}
    await js.call("STREAM", "CREATE", stream, body=old | {"allow_rollup_hdrs": True})
    await topology.ensure(js, own_nats.settings, WAIT_S)
    info = await js.stream_info(stream)
    assert info is not None
    assert not info["config"]["allow_rollup_hdrs"]
    await link.close()
