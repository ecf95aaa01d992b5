"""One world for each implementation of the broker: in memory, one real server, three of them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import msgspec
import pytest
from harness.nats import settings_for_tests
from harness.world import WAIT_S, World

from inferflux.broker.subjects import Lane, RequestKey, ServiceClass

_numbers = itertools.count()


@pytest.fixture(
    params=[
        "memory",
        pytest.param("nats", marks=pytest.mark.integration),
        pytest.param("cluster", marks=pytest.mark.cluster),
    ]
)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    names = {"nats": "nats", "cluster": "nats_cluster"}
    servers = request.getfixturevalue(names[request.param]) if request.param in names else None
    settings = servers.settings if servers is not None else settings_for_tests()
    # No outage here: what is slow is the machine.
    broker = msgspec.structs.replace(settings.broker, timeout_s=WAIT_S)
    tape = msgspec.structs.replace(settings.tape, ack_timeout_s=WAIT_S)
    world = World(msgspec.structs.replace(settings, broker=broker, tape=tape), servers)
    yield world
    await world.close()


@pytest.fixture
def lane() -> Lane:
    """A lane that no other test uses; its model has every kind of character."""
    return Lane(f"org/model:v1.5 {next(_numbers)}#", ServiceClass.DEFAULT, "acme")


@pytest.fixture
def key() -> RequestKey:
    number = next(_numbers)
    return RequestKey(f"a-replica{number}", f"request.{number}")
