"""Three servers, three replicas: what survives the loss of one, and of all."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from harness.nats import NatsServers
from harness.world import LIMITS, WAIT_S

from inferflux.broker.broker import Delivery, Tape
from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.broker.wire.requests import Claim

pytestmark = pytest.mark.cluster

LANE = Lane("m", ServiceClass.DEFAULT, "acme")
KEY = RequestKey("a-1", "r")


async def pull(broker: JetStreamBroker) -> Delivery:
    async with asyncio.timeout(3 * WAIT_S):
        while True:
            try:
                delivery = await broker.pull(LANE, LIMITS)
            except BrokerUnavailable:
                delivery = None
            if delivery is not None:
                return delivery
            await asyncio.sleep(0.05)


async def claim(broker: JetStreamBroker, expected_seq: int) -> int:
    async with asyncio.timeout(3 * WAIT_S):
        while True:
            try:
                return await broker.put_claim(KEY, Claim(worker="w"), expected_seq=expected_seq)
            except BrokerUnavailable:
                await asyncio.sleep(0.05)


async def read(broker: JetStreamBroker) -> Tape:
    async with asyncio.timeout(3 * WAIT_S):
        while True:
            try:
                return await broker.read_tape(KEY)
            except BrokerUnavailable:
                await asyncio.sleep(0.05)


async def test_workers_that_hear_one_bell_do_not_wait_for_each_other(own_cluster: NatsServers) -> None:
    # Whoever waited for an answer that does not come would wait for as long as a call may take.
    broker = msgspec.structs.replace(own_cluster.settings.broker, timeout_s=4 * WAIT_S)
    patient = msgspec.structs.replace(own_cluster.settings, broker=broker)
    workers = [await own_cluster.connect("worker", settings=patient) for _ in range(4)]
    async with own_cluster.broker("api") as api:
        for number in range(15):
            lane = Lane("m", ServiceClass.DEFAULT, str(number))
            await api.publish_prompt(lane, b"", msg_id=str(number))
            async with asyncio.timeout(WAIT_S):
                num_found = 0
                while not num_found:
                    found = await asyncio.gather(*(worker.pull(lane, LIMITS) for worker in workers))
                    num_found = sum(each is not None for each in found)
            assert num_found == 1
    for worker in workers:
        await worker.close()


async def test_the_leader_dies_and_nothing_is_lost(own_cluster: NatsServers) -> None:
    async with own_cluster.broker("api") as api, own_cluster.broker("worker") as worker:
        receipt = await api.publish_prompt(LANE, b"kept", msg_id="1")
        first = await claim(worker, 0)
        frames = [await worker.send_frame(KEY, b"%d" % number) for number in range(20)]
        own_cluster.kill(await own_cluster.leader("TAPE"))
        newer = await claim(worker, first)
        tape = await read(worker)
        assert [each.seq for each in tape.frames] == frames
        assert tape.claim_seq == newer > first
        delivery = await pull(worker)
        assert (delivery.seq, delivery.body) == (receipt.seq, b"kept")


async def test_sequences_grow_even_when_every_server_restarts(own_cluster: NatsServers) -> None:
    async with own_cluster.broker("api") as api, own_cluster.broker("worker") as worker:
        receipt = await api.publish_prompt(LANE, b"kept", msg_id="1")
        before = await claim(worker, 0)
        for node in range(3):
            own_cluster.kill(node)
        async with asyncio.timeout(WAIT_S):
            while api.connected or worker.connected:
                await asyncio.sleep(0.01)
        own_cluster.start_all()
        delivery = await pull(worker)
        assert (delivery.seq, delivery.body) == (receipt.seq, b"kept")
        assert await read(worker) == Tape(None, 0, ())
        # Whoever may set up the streams does so when it connects.
        async with own_cluster.broker("api"):
            assert await claim(worker, 0) > before
