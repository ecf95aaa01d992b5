"""What only a clock of one's own can show: windows and ages of minutes and hours; and outages at will."""

from __future__ import annotations

import pytest

from inferflux.broker.broker import LaneLimits
from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.broker.topology import DUPLICATE_WINDOW_S
from inferflux.broker.wire.requests import Claim
from inferflux.config.settings import QueueSettings, Settings, TapeSettings

LANE = Lane("m", ServiceClass.DEFAULT, "acme")
KEY = RequestKey("a-1", "r")
LIMITS = LaneLimits(max_running=2, lease_s=15, idle_s=300)
SETTINGS = Settings(tape=TapeSettings(max_age_s=3600, max_bytes=1000), queue=QueueSettings(max_lanes=1))


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(clock: Clock) -> MemoryHub:
    return MemoryHub(clock, SETTINGS)


@pytest.fixture
def broker(hub: MemoryHub) -> MemoryBroker:
    return MemoryBroker(hub)


async def test_message_id_is_forgotten_after_the_window(broker: MemoryBroker, clock: Clock) -> None:
    first = await broker.publish_prompt(LANE, b"", msg_id="1")
    clock.now_s = DUPLICATE_WINDOW_S - 0.1
    assert (await broker.publish_prompt(LANE, b"", msg_id="1")).duplicate
    clock.now_s = DUPLICATE_WINDOW_S
    second = await broker.publish_prompt(LANE, b"", msg_id="1")
    assert (second.duplicate, second.seq) == (False, first.seq + 1)


async def test_lease_lasts_to_the_second_and_extending_starts_it_anew(broker: MemoryBroker, clock: Clock) -> None:
    await broker.publish_prompt(LANE, b"", msg_id="1")
    held = await broker.pull(LANE, LIMITS)
    assert held is not None
    clock.now_s = 14.9
    await held.extend()
    clock.now_s = 29.8
    assert await broker.pull(LANE, LIMITS) is None
    clock.now_s = 29.9
    again = await broker.pull(LANE, LIMITS)
    assert again is not None
    assert (again.seq, again.num_delivered) == (held.seq, 2)


async def test_idle_lane_makes_room_and_forgets_its_deliveries(broker: MemoryBroker, clock: Clock) -> None:
    await broker.publish_prompt(LANE, b"", msg_id="1")
    held = await broker.pull(LANE, LIMITS)
    assert held is not None
    clock.now_s = 301
    other = Lane("m", ServiceClass.DEFAULT, "globex")
    assert await broker.pull(other, LIMITS) is None
    clock.now_s = 602
    again = await broker.pull(LANE, LIMITS)
    assert again is not None
    assert (again.seq, again.num_delivered) == (held.seq, 1)


async def test_tape_forgets_after_its_age(broker: MemoryBroker, clock: Clock) -> None:
    await broker.put_claim(KEY, Claim(worker="w"), expected_seq=0)
    clock.now_s = 1800
    seq = await broker.send_frame(KEY, b"x" * 100)
    clock.now_s = 3600
    tape = await broker.read_tape(KEY)
    assert tape.claim is None
    assert [each.seq for each in tape.frames] == [seq]
    clock.now_s = 5400
    assert (await broker.read_tape(KEY)).frames == ()
    assert await broker.tape_fill() == 0


async def test_offline_hub_fails_everybody(broker: MemoryBroker, hub: MemoryHub) -> None:
    hub.online = False
    assert not broker.connected
    with pytest.raises(BrokerUnavailable):
        await broker.publish_prompt(LANE, b"", msg_id="1")
    with pytest.raises(BrokerUnavailable):
        await broker.send_frame(KEY, b"")
    hub.online = True
    await broker.send_frame(KEY, b"")


async def test_closed_broker_fails_alone(broker: MemoryBroker, hub: MemoryHub) -> None:
    await broker.close()
    with pytest.raises(BrokerUnavailable):
        await broker.pull(LANE, LIMITS)
    assert MemoryBroker(hub).connected
