"""A link comes back as one connection, however many tries that took, and knows what its server takes."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from harness.nats import NatsServers
from harness.world import WAIT_S, Inbox

from inferflux.broker import subjects
from inferflux.broker.credentials import Connection
from inferflux.broker.errors import BrokerUnavailable, MessageTooLarge
from inferflux.broker.link import Link
from inferflux.broker.nats_client import NatsClient
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.config.settings import ServerSettings

pytestmark = pytest.mark.integration

NUM_TRIES = 4


class WatchedLink(Link):
    """Counts its tries to connect, and how many of them ran at once."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, name="test", timeout_s=0.5)
        self.num_tries = 0
        self.num_running = 0
        self.max_running = 0
        self.tried_often = asyncio.Event()

    async def _connect(self) -> NatsClient:
        self.num_tries += 1
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        if self.num_tries > NUM_TRIES:
            self.tried_often.set()
        try:
            return await super()._connect()
        finally:
            self.num_running -= 1


async def answered(link: Link) -> bool:
    try:
        await link.flush()
    except BrokerUnavailable:
        return False
    return link.connected


async def test_tries_that_time_out_do_not_multiply(own_nats: NatsServers) -> None:
    link = WatchedLink(own_nats.connection("worker"))
    await link.open(WAIT_S)
    inbox = Inbox()
    await link.listen(subjects.fair("m"), lambda packet: inbox.put(packet.data))
    lost, restored = asyncio.Event(), asyncio.Event()
    link.on_lost.append(lost.set)
    link.on_restored.append(restored.set)
    own_nats.revoke("worker")
    async with asyncio.timeout(2 * WAIT_S):
        await lost.wait()
        # Connections are made, and nothing is said on them.
        own_nats.freeze()
        await link.tried_often.wait()
        own_nats.thaw()
        own_nats.restore()
        await restored.wait()
        # The server closes what has connected while it read its configuration.
        while not await answered(link):
            await asyncio.sleep(0.01)
    for body in (b"once", b"last"):
        link.send(subjects.fair("m"), body)
    assert [await inbox.next(bytes), await inbox.next(bytes)] == [b"once", b"last"]
    await link.close()
    assert link.max_running == 1


async def test_what_the_server_takes_no_more_of_is_refused_before_it_is_sent(
    own_nats: NatsServers, caplog: pytest.LogCaptureFixture
) -> None:
    """The server counts headers too; sending more would cost the connection."""
    large = msgspec.structs.replace(own_nats.settings, server=ServerSettings(max_body_bytes=8 * 1024 * 1024 + 1))
    async with own_nats.broker("api") as api:
        assert "max_payload" not in caplog.text
        lane = Lane("m", ServiceClass.DEFAULT, "acme")
        with pytest.raises(MessageTooLarge):
            await api.publish_prompt(lane, b"x" * (8 * 1024 * 1024 - 10), msg_id="1")
        await api.publish_prompt(lane, b"x" * (8 * 1024 * 1024 - 100), msg_id="1")
        frame = api.send_frame(RequestKey("a-1", "r"), b"x" * (8 * 1024 * 1024 + 1))
        assert isinstance(frame.exception(), MessageTooLarge)
    async with own_nats.broker("api", large):
        assert "raise its max_payload" in caplog.text
