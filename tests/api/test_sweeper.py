"""Prompts that nobody pulls are ended once, in memory and on a server."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from harness.nats import settings_for_tests
from harness.world import World
from prometheus_client import CollectorRegistry

from inferflux.api import sweeper as sweeper_module
from inferflux.api.cancel import Canceller
from inferflux.api.sweeper import Sweeper
from inferflux.broker.broker import Broker
from inferflux.broker.errors import ClaimLost
from inferflux.broker.stamp import Stamp, Stamper
from inferflux.broker.subjects import BUCKET_WORKERS, HEADER_STAMP, Lane, RequestKey, ServiceClass, encode_token, infer
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.fleet import ModelBeat, WorkerBeat
from inferflux.broker.wire.requests import Claim, Failure, Frame, Usage, decode_frame
from inferflux.config.metrics import ApiMetrics
from inferflux.config.settings import QueueSettings
from inferflux.registry.deadletters import DeadLetters
from inferflux.registry.follower import FleetFollower

STAMPER = Stamper(b"the secret of the stamps")
SETTINGS = QueueSettings(no_backend_grace_s=600.0, lease_s=3600.0)
_numbers = itertools.count()


class Clock:
    """The sweeper's. It is ahead of the machine's: by `waited_s` for whoever asks how long a prompt has waited, by
    `absent_s` for whoever asks how long a worker has been away."""

    def __init__(self) -> None:
        self.waited_s = 0.0
        self.absent_s = 0.0

    def time(self) -> float:
        return time.time() + self.waited_s

    def monotonic(self) -> float:
        return time.monotonic() + self.absent_s

    def elapse(self, seconds: float) -> None:
        self.waited_s += seconds
        self.absent_s += seconds


class Scene:
    """One sweeper, prompts of a model of their own, and whoever claims them."""

    def __init__(self, api: Broker, worker: Broker, follower: FleetFollower, clock: Clock) -> None:
        self.clock = clock
        self.api = api
        self.worker = worker
        self.follower = follower
        self.model = f"model{next(_numbers)}"
        self.lane = Lane(self.model, ServiceClass.DEFAULT, "acme")
        self.registry = CollectorRegistry()
        self.sweeper = self.another()

    def another(self) -> Sweeper:
        metrics = ApiMetrics(CollectorRegistry()) if hasattr(self, "sweeper") else ApiMetrics(self.registry)
        canceller = Canceller(self.api, "a-sweeping", window_s=60)
        return Sweeper(SETTINGS, self.api, STAMPER, self.follower, canceller, metrics)

    async def publish(self, request: str, *, stamped: str | None = None, lane: Lane | None = None, **body: Any) -> int:
        lane = lane or self.lane
        data = msgspec.json.encode({"type": "completion", "id": f"{self.model}.{request}", "prompt": "x"} | body)
        headers = {}
        msg_id = f"{self.model}.{request}"
        if stamped:
            stamp = Stamp(stamped, int(time.time()) + 60, 0)
            headers[HEADER_STAMP] = STAMPER.write(stamp, subject=infer(lane), msg_id=msg_id, body=data)
        return (await self.api.publish_prompt(lane, data, msg_id=msg_id, headers=headers)).seq

    def key(self, request: str, owner: str = "t-acme") -> RequestKey:
        return RequestKey(owner, f"{self.model}.{request}")

    async def beat(self, worker: str = "w1", *models: str) -> None:
        """A worker of these models appears, or of the scene's own."""
        beats = tuple(ModelBeat(id=model, backend="stub") for model in models or (self.model,))
        beat = WorkerBeat(worker=worker, epoch="e", host="h", pid=1, started=0.0, at=0.0, models=beats)
        bucket = await self.worker.bucket(BUCKET_WORKERS)
        await bucket.put(encode_token(worker), encode(beat), ttl_s=60)
        async with asyncio.timeout(30):
            while not self.follower.fleet.has_worker(worker):
                await asyncio.sleep(0.01)

    async def gone(self, worker: str) -> None:
        await (await self.worker.bucket(BUCKET_WORKERS)).delete(encode_token(worker))
        async with asyncio.timeout(30):
            while self.follower.fleet.has_worker(worker):
                await asyncio.sleep(0.01)

    async def terminals(self, key: RequestKey) -> list[Frame]:
        tape = await self.api.read_tape(key)
        return [frame for entry in tape.frames if (frame := decode_frame(entry.body)).terminal]

    async def error(self, key: RequestKey) -> Failure:
        """The one terminal frame, which is an error."""
        (end,) = await self.terminals(key)
        assert end.error is not None
        return end.error

    async def depth(self) -> int:
        return sum((await self.api.backlog(self.model)).values())


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.integration)])
async def scene(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    clock = Clock()
    monkeypatch.setattr(sweeper_module, "time", clock)
    servers = request.getfixturevalue("own_nats") if request.param == "nats" else None
    world = World(servers.settings if servers is not None else settings_for_tests(), servers)
    api = await world.broker("api")
    follower = FleetFollower(api)
    follower.start()
    await follower.ready.wait()
    yield Scene(api, await world.broker("worker"), follower, clock)
    await follower.close()
    await world.close()


async def test_deadline_passes_while_every_worker_is_busy(scene: Scene) -> None:
    await scene.beat()
    await scene.publish("late", deadline=time.time() - 3)
    await scene.publish("stamped", deadline=time.time() - 3, stamped="a-one")
    await scene.publish("in time", deadline=time.time() + 600)
    await scene.publish("patient")

    assert await scene.sweeper.sweep() == 2
    assert (await scene.error(scene.key("late"))).code == "queue_timeout"
    assert (await scene.error(scene.key("stamped", "a-one"))).code == "queue_timeout"
    assert await scene.depth() == 2
    assert await scene.sweeper.sweep() == 0
    assert await scene.terminals(scene.key("patient")) == []
    swept = {"model": scene.model, "code": "queue_timeout"}
    assert scene.registry.get_sample_value("inferflux_swept_total", swept) == 2


async def test_model_without_workers_is_told_after_the_grace(scene: Scene) -> None:
    await scene.beat("other", "other model")
    scene.clock.absent_s += SETTINGS.no_backend_grace_s
    await scene.publish("new")
    assert await scene.sweeper.sweep() == 0, "it has not waited itself"

    scene.clock.elapse(SETTINGS.no_backend_grace_s)
    assert await scene.sweeper.sweep() == 1
    error = await scene.error(scene.key("new"))
    assert error.code == "no_backend"
    assert scene.model in error.message
    assert await scene.depth() == 0


async def test_running_is_left_alone_while_its_worker_lives(scene: Scene) -> None:
    await scene.beat("w1")
    seq = await scene.publish("runs", deadline=time.time() - 30)
    await scene.worker.put_claim(scene.key("runs"), Claim(worker="w1", prompt=seq, at=time.time()), expected_seq=0)
    await scene.publish("late", deadline=time.time() - 30)

    assert await scene.sweeper.sweep() == 1
    assert await scene.terminals(scene.key("runs")) == []
    assert (await scene.error(scene.key("late"))).code == "queue_timeout"


async def test_running_on_a_dead_worker_ends_when_nobody_else_has_the_model(scene: Scene) -> None:
    await scene.beat("w2")
    await scene.gone("w2")
    seq = await scene.publish("orphan")
    fence = await scene.worker.put_claim(scene.key("orphan"), Claim(worker="w2", prompt=seq), expected_seq=0)
    scene.clock.elapse(SETTINGS.no_backend_grace_s)
    assert await scene.sweeper.sweep() == 0, "a lease more than for what nobody has begun"

    scene.clock.elapse(SETTINGS.lease_s)
    assert await scene.sweeper.sweep() == 1
    assert (await scene.error(scene.key("orphan"))).code == "no_backend"
    newest = await scene.api.last_claim(scene.key("orphan"))
    assert newest is not None
    assert newest[0] > fence
    assert newest[1].state == "cancelled"
    assert await scene.depth() == 0


async def test_prompt_that_took_the_last_worker_along_becomes_a_dead_letter(scene: Scene) -> None:
    seq = await scene.publish("poison")
    key, newest = scene.key("poison"), 0
    for number in range(1, 4):
        claim = Claim(worker=f"lost{number}", prompt=seq, num_attempts=number)
        newest = await scene.worker.put_claim(key, claim, expected_seq=newest)

    scene.clock.elapse(SETTINGS.no_backend_grace_s + SETTINGS.lease_s)
    assert await scene.sweeper.sweep() == 1
    assert (await scene.error(key)).code == "attempts_exhausted"
    (letter,) = await DeadLetters(scene.api).all()
    assert letter.about.request == key.request
    assert [attempt.worker for attempt in letter.about.attempts] == ["lost1", "lost2", "lost3"]


async def test_answered_but_not_removed_is_only_removed(scene: Scene) -> None:
    seq = await scene.publish("done")
    key = scene.key("done")
    fence = await scene.worker.put_claim(key, Claim(worker="dead", prompt=seq), expected_seq=0)
    answer = Frame(id=key.request, attempt=fence, usage=Usage(prompt_tokens=1))
    await scene.worker.put_terminal(key, encode(answer), fence=fence)

    scene.clock.elapse(SETTINGS.no_backend_grace_s + SETTINGS.lease_s)
    assert await scene.sweeper.sweep() == 1
    assert await scene.depth() == 0
    assert await scene.terminals(key) == [answer]


async def test_cancelled_by_somebody_who_died_is_completed(scene: Scene) -> None:
    await scene.beat()
    key = scene.key("half")
    await scene.publish("half")
    await scene.publish("just now")
    await scene.api.put_claim(key, Claim(worker="a-x", state="cancelled", at=time.time() - 11), expected_seq=0)
    recent = Claim(worker="a-x", state="cancelled", at=time.time())
    await scene.api.put_claim(scene.key("just now"), recent, expected_seq=0)

    assert await scene.sweeper.sweep() == 1
    assert (await scene.error(key)).code == "cancelled"
    assert await scene.depth() == 1


async def test_second_prompt_under_a_used_id_does_not_end_the_first(scene: Scene) -> None:
    await scene.beat()
    key = scene.key("twice")
    first = await scene.publish("twice")
    await scene.worker.put_claim(key, Claim(worker="w1", state="released", prompt=first), expected_seq=0)
    body = msgspec.json.encode({"type": "completion", "id": key.request, "prompt": "x", "deadline": 1.0})
    await scene.api.publish_prompt(scene.lane, body, msg_id=f"{scene.model} again")

    assert await scene.sweeper.sweep() == 0
    assert await scene.terminals(key) == []


async def test_many_sweepers_end_each_prompt_once(scene: Scene) -> None:
    await scene.beat()
    for number in range(20):
        await scene.publish(f"r{number}", deadline=1.0)
    sweepers = [scene.sweeper, *(scene.another() for _ in range(3))]

    await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers))

    for number in range(20):
        assert (await scene.error(scene.key(f"r{number}"))).code == "queue_timeout"
    assert await scene.depth() == 0


async def test_out_of_order_deadline_is_found_by_walking(scene: Scene) -> None:
    await scene.beat()
    for number in range(25):
        await scene.publish(f"patient{number}")
    await scene.publish("hidden", deadline=time.time() - 30)

    async with asyncio.timeout(30):
        while not await scene.sweeper.sweep():
            pass
    assert (await scene.error(scene.key("hidden"))).code == "queue_timeout"
    assert await scene.depth() == 25


async def test_unreadable_prompt_ends_under_its_message_id(scene: Scene) -> None:
    key = RequestKey("t-acme", f"{scene.model}-broken")
    await scene.api.publish_prompt(scene.lane, b"{", msg_id=f"t-acme.{key.request}")

    scene.clock.elapse(SETTINGS.no_backend_grace_s)
    assert await scene.sweeper.sweep() == 1
    assert (await scene.error(key)).code == "no_backend"


async def test_sweeping_races_with_workers_and_each_prompt_ends_once(scene: Scene) -> None:
    await scene.beat()
    keys = [scene.key(f"r{number}") for number in range(40)]
    seqs = [await scene.publish(f"r{number}", deadline=1.0) for number in range(40)]
    won = 0

    async def work(key: RequestKey, seq: int) -> None:
        nonlocal won
        try:
            fence = await scene.worker.put_claim(key, Claim(worker="w1", prompt=seq), expected_seq=0)
            answer = Frame(id=key.request, attempt=fence, usage=Usage(prompt_tokens=1))
            await scene.worker.put_terminal(key, encode(answer), fence=fence)
        except ClaimLost:
            return
        won += 1
        await scene.worker.drop_prompt(seq)

    async def work_backwards() -> None:
        for key, seq in zip(reversed(keys), reversed(seqs), strict=True):
            await work(key, seq)

    num_ended, _ = await asyncio.gather(scene.sweeper.sweep(), work_backwards())

    assert num_ended + won == 40
    ends = [await scene.terminals(key) for key in keys]
    assert [len(each) for each in ends] == [1] * 40
    assert sum(end.error is not None for (end,) in ends) == num_ended
    assert await scene.depth() == 0
