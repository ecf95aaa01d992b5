"""A whole worker with the stub engine, over the in-memory broker."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from inferflux.broker import memory
from inferflux.broker.errors import Code, MessageTooLarge
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.prefix import prefix_digest
from inferflux.broker.stamp import Stamp, Stamper
from inferflux.broker.subjects import HEADER_PREFIX, HEADER_STAMP, Lane, RequestKey, ServiceClass, infer
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.requests import (
    ChatPrompt,
    Claim,
    Frame,
    Message,
    Usage,
    decode_claim,
    decode_frame,
    decode_prompt,
)
from inferflux.config.metrics import WorkerMetrics
from inferflux.config.settings import (
    QueueSettings,
    RuntimeSettings,
    SchedulerSettings,
    Settings,
    StubSettings,
    TapeSettings,
    TenantSettings,
    WorkerSettings,
)
from inferflux.registry.control import Control
from inferflux.registry.deadletters import DeadLetters
from inferflux.registry.fairness import FairnessStore
from inferflux.registry.store import PolicyStore
from inferflux.registry.tenants import Tenants
from inferflux.workers import placement
from inferflux.workers.backends.backend import Chunk, Sample
from inferflux.workers.backends.opening import open_backend
from inferflux.workers.backends.stub import StubBackend
from inferflux.workers.host import ModelHost
from inferflux.workers.meter import Meter
from inferflux.workers.reader import PromptReader
from inferflux.workers.seal import Sealer
from inferflux.workers.worker import Worker

LANE = Lane("stub", ServiceClass.DEFAULT, "acme")
STAMPER = Stamper(b"the secret of the stamps")
SEALER = Sealer(b"the secret of the seals")
LONG = 2000
"""More tokens than a slow fleet makes in any test."""

TENANTS = (TenantSettings(id="acme", max_running=8), TenantSettings(id="narrow", max_running=1))


class Fleet:
    """One hub, some workers, and a client that sees the replies of its own tenant or replica."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.hub = MemoryHub(settings=settings)
        self.client = MemoryBroker(self.hub)
        self.workers: list[tuple[Worker, asyncio.Task[None]]] = []
        self.registry = CollectorRegistry()
        self._metrics = WorkerMetrics(self.registry)
        self._frames: dict[RequestKey, list[Frame]] = {}
        self._came = asyncio.Condition()

    async def listen(self, *owners: str) -> None:
        for owner in owners:
            await self.client.listen_replies(owner, lambda reply: self._take(reply.key, decode_frame(reply.body)))

    def start_worker(self, broker: MemoryBroker | None = None) -> Worker:
        tenants = Tenants.from_settings(self.settings)
        host = ModelHost(
            "stub", open_backend("stub", None, self.settings.runtime), self.settings.runtime, self._metrics
        )
        reader = PromptReader(STAMPER, SEALER, tenants)
        broker = broker or MemoryBroker(self.hub)
        control = Control(self.settings, PolicyStore(broker), tenants)
        worker = Worker(self.settings, broker, [host], control, reader, Meter(self._metrics))
        self.workers.append((worker, asyncio.create_task(worker.run())))
        return worker

    async def publish(self, request: str, lane: Lane = LANE, *, stamped: str | None = None, **body: Any) -> int:
        fields = {"type": "completion", "id": request, "prompt": "hello", "max_tokens": 4} | body
        data = msgspec.json.encode(fields)
        headers = {}
        if stamped is not None:
            stamp = Stamp(stamped, int(time.time()) + 60, 0)
            headers[HEADER_STAMP] = STAMPER.write(stamp, subject=infer(lane), msg_id=request, body=data)
            prefix = prefix_digest(decode_prompt(data), f"tenant:{lane.tenant}")
            headers |= {HEADER_PREFIX: prefix} if prefix else {}
        receipt = await self.client.publish_prompt(lane, data, msg_id=request, headers=headers)
        return receipt.seq

    async def frames(self, request: str, owner: str = "t-acme", *, at_least: int = 0) -> list[Frame]:
        """The request's frames once it has ended, or once there are that many."""
        key = RequestKey(owner, request)

        def enough() -> bool:
            frames = self._frames.get(key, [])
            return (at_least and len(frames) >= at_least) or any(frame.terminal for frame in frames)

        async with asyncio.timeout(30), self._came:
            await self._came.wait_for(enough)
        return list(self._frames[key])

    async def wait_until_empty(self) -> None:
        """Every prompt has been acknowledged."""
        async with asyncio.timeout(30):
            while await self.client.backlog():
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        for worker, task in self.workers:
            worker.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _take(self, key: RequestKey, frame: Frame) -> None:
        self._frames.setdefault(key, []).append(frame)
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._came:
            self._came.notify_all()


def settings(**stub: Any) -> Settings:
    return Settings(
        tenants=TENANTS,
        runtime=RuntimeSettings(
            scheduler=SchedulerSettings(max_batch_size=4), stub=StubSettings(**{"step_s": 0.0, **stub})
        ),
        queue=QueueSettings(lease_s=30.0, resync_interval_s=0.05, max_attempts=3),
        tape=TapeSettings(window_s=0.05),
        worker=WorkerSettings(drain_timeout_s=0.2),
    )


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet(settings())
    await fleet.listen("t-acme", "t-narrow", "a-one")
    yield fleet
    await fleet.stop()


@pytest.fixture
async def slow_fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet(settings(step_s=0.05))
    await fleet.listen("t-acme")
    yield fleet
    await fleet.stop()


def text(frames: list[Frame]) -> str:
    return "".join(frame.text for frame in frames)


async def test_a_prompt_is_answered_and_leaves_nothing_behind(fleet: Fleet) -> None:
    fleet.start_worker()
    await fleet.publish("r1")
    frames = await fleet.frames("r1")
    assert text(frames).startswith("[stub] ")
    assert frames[-1].usage == Usage(prompt_tokens=5, completion_tokens=4)
    await fleet.wait_until_empty()
    async with asyncio.timeout(30):
        while (await fleet.client.read_tape(RequestKey("t-acme", "r1"))).claim is not None:
            await asyncio.sleep(0.01)


async def test_prompts_that_waited_for_a_worker_are_found(fleet: Fleet) -> None:
    for number in range(10):
        await fleet.publish(f"r{number}")
    fleet.start_worker()
    for number in range(10):
        assert (await fleet.frames(f"r{number}"))[-1].usage is not None
    await fleet.wait_until_empty()


async def test_two_workers_answer_each_prompt_once(fleet: Fleet) -> None:
    fleet.start_worker()
    fleet.start_worker()
    for number in range(40):
        await fleet.publish(f"r{number}", Lane("stub", ServiceClass.DEFAULT, ("acme", "narrow")[number % 2]))
    for number in range(40):
        frames = await fleet.frames(f"r{number}", ("t-acme", "t-narrow")[number % 2])
        assert sum(frame.terminal for frame in frames) == 1
    await fleet.wait_until_empty()


async def test_a_genuine_stamp_names_the_owner_and_a_false_one_does_not(fleet: Fleet) -> None:
    fleet.start_worker()
    await fleet.publish("stamped", stamped="a-one")
    assert (await fleet.frames("stamped", "a-one"))[-1].usage is not None
    data = encode(Frame(id="x", attempt=0))
    forged = Stamper(b"a secret that is not theirs").write(
        Stamp("a-one", int(time.time()) + 60, 0), subject=infer(LANE), msg_id="forged", body=data
    )
    body = b'{"type":"completion","id":"forged","prompt":"x","max_tokens":1}'
    await fleet.client.publish_prompt(LANE, body, msg_id="forged", headers={HEADER_STAMP: forged})
    assert (await fleet.frames("forged", "t-acme"))[-1].usage is not None


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"prompt": ""}, "invalid_request", "prompt"),
        ({"temperature": -1}, "invalid_request", "temperature"),
        ({"prompt": [[1, 10**6]]}, "invalid_request", "prompt"),
        ({"prompt": "x" * 9000}, "context_length_exceeded", "prompt"),
        ({"max_tokens": 8192}, "context_length_exceeded", "prompt"),
        ({"type": "chat", "messages": []}, "invalid_request", "messages"),
        ({"logit_bias": {"x": 1}}, "invalid_request", "logit_bias"),
        ({"deadline": 1.0}, "queue_timeout", None),
    ],
)
async def test_what_cannot_run_ends_with_its_reason(fleet: Fleet, body: dict[str, Any], code: str, param: str) -> None:
    fleet.start_worker()
    await fleet.publish("bad", **body)
    error = (await fleet.frames("bad"))[-1].error
    assert error is not None
    assert (error.code, error.param) == (code, param)
    await fleet.wait_until_empty()


async def test_an_unreadable_body_is_answered_under_its_message_id(fleet: Fleet) -> None:
    fleet.start_worker()
    await fleet.client.publish_prompt(LANE, b"{", msg_id="t-acme.broken", headers={})
    error = (await fleet.frames("broken"))[-1].error
    assert error is not None
    assert error.code == "invalid_json"


async def test_a_running_request_is_cancelled_by_a_hint(slow_fleet: Fleet) -> None:
    worker = slow_fleet.start_worker()
    await slow_fleet.publish("long", max_tokens=LONG, ignore_eos=True)
    await slow_fleet.frames("long", at_least=1)
    await slow_fleet.client.send_cancel(RequestKey("t-acme", "long"))
    frames = await slow_fleet.frames("long")
    assert frames[-1].error is not None
    assert frames[-1].error.code == "cancelled"
    await slow_fleet.wait_until_empty()
    async with asyncio.timeout(30):
        while worker.hosts[0].stats().busy or worker.num_attempts:
            await asyncio.sleep(0.01)
    stats = worker.hosts[0].stats()
    assert stats.num_pages_used == 0
    assert stats.generated_tokens < LONG


async def test_a_queued_request_is_cancelled_by_a_hint(slow_fleet: Fleet) -> None:
    slow_fleet.start_worker()
    for number in range(4):
        await slow_fleet.publish(f"busy{number}", max_tokens=LONG, ignore_eos=True)
        await slow_fleet.frames(f"busy{number}", at_least=1)
    await slow_fleet.publish("queued")
    await slow_fleet.client.send_cancel(RequestKey("t-acme", "queued"))
    frames = await slow_fleet.frames("queued")
    assert [frame.error.code for frame in frames if frame.error] == ["cancelled"]
    for number in range(4):
        await slow_fleet.client.send_cancel(RequestKey("t-acme", f"busy{number}"))
    await slow_fleet.wait_until_empty()
    assert len(await slow_fleet.frames("queued")) == 1


async def test_a_draining_worker_hands_back_and_another_continues_exactly(slow_fleet: Fleet) -> None:
    first = slow_fleet.start_worker()
    await slow_fleet.publish("moved", max_tokens=60)
    await slow_fleet.publish("whole", max_tokens=60)
    before = await slow_fleet.frames("moved", at_least=3)
    slow_fleet.start_worker()
    first.stop()
    frames = await slow_fleet.frames("moved")
    assert frames[-1].attempt > before[0].attempt
    assert frames[-1].usage is not None
    assert frames[-1].usage.completion_tokens == 60
    assert [frame.index for frame in frames] == sorted({frame.index for frame in frames})
    assert text(frames) == text(await slow_fleet.frames("whole"))


async def test_a_request_that_lost_three_workers_is_given_up(fleet: Fleet) -> None:
    seq = await fleet.publish("poison")
    claim = Claim(worker="dead", prompt=seq, num_attempts=3)
    await fleet.client.put_claim(RequestKey("t-acme", "poison"), claim, expected_seq=0)
    fleet.start_worker()
    error = (await fleet.frames("poison"))[-1].error
    assert error is not None
    assert error.code == "attempts_exhausted"
    await fleet.wait_until_empty()
    (letter,) = await DeadLetters(fleet.client).all()
    assert letter.id == "t-acme.poison"
    assert msgspec.json.decode(letter.body)["id"] == "poison"
    assert [attempt.worker for attempt in letter.about.attempts] == ["dead"]


async def test_only_what_is_given_up_becomes_a_dead_letter(fleet: Fleet) -> None:
    fleet.start_worker()
    await fleet.publish("bad", temperature=-1)
    await fleet.publish("good")
    assert (await fleet.frames("bad"))[-1].error is not None
    assert (await fleet.frames("good"))[-1].usage is not None
    await fleet.wait_until_empty()
    assert await DeadLetters(fleet.client).all() == []


async def test_a_request_that_was_answered_before_the_ack_is_only_acked(fleet: Fleet) -> None:
    seq = await fleet.publish("done")
    key = RequestKey("t-acme", "done")
    attempt = await fleet.client.put_claim(key, Claim(worker="dead", prompt=seq), expected_seq=0)
    terminal = Frame(id="done", attempt=attempt, usage=Usage(prompt_tokens=1))
    await fleet.client.put_terminal(key, encode(terminal), fence=attempt)
    fleet.start_worker()
    await fleet.wait_until_empty()
    assert await fleet.frames("done") == [terminal]


class SmallBroker(MemoryBroker):
    """A server that takes only so many bytes in a message."""

    def __init__(self, hub: MemoryHub, max_payload: int) -> None:
        super().__init__(hub)
        self._max_payload = max_payload

    def send_frame(self, key: RequestKey, body: bytes) -> asyncio.Future[int]:
        if len(body) <= self._max_payload:
            return super().send_frame(key, body)
        refused: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        refused.set_exception(MessageTooLarge("too large"))
        return refused

    async def put_terminal(self, key: RequestKey, body: bytes, *, fence: int) -> int:
        if len(body) > self._max_payload:
            raise MessageTooLarge("too large")
        return await super().put_terminal(key, body, fence=fence)


@pytest.mark.parametrize("max_tokens", [1, 10], ids=["terminal", "first of many"])
async def test_a_piece_that_the_server_will_never_take_ends_the_request(fleet: Fleet, max_tokens: int) -> None:
    """The first frame of an attempt also names model and backend: it alone is over the limit, or also the last."""
    fleet.start_worker(SmallBroker(fleet.hub, max_payload=200))
    await fleet.publish("large", max_tokens=max_tokens)
    (end,) = [frame for frame in await fleet.frames("large") if frame.terminal]
    assert end.error is not None
    assert end.error.code == Code.ENGINE_ERROR
    await fleet.wait_until_empty()


async def test_a_claim_that_nobody_understands_is_taken_over(fleet: Fleet) -> None:
    await fleet.publish("spoiled")
    await fleet.client.put_claim(RequestKey("t-acme", "spoiled"), decode_claim(b"{}"), expected_seq=0)
    fleet.start_worker()
    assert (await fleet.frames("spoiled"))[-1].usage is not None
    await fleet.wait_until_empty()


async def test_a_second_prompt_under_a_used_id_joins_the_first(slow_fleet: Fleet) -> None:
    slow_fleet.start_worker()
    await slow_fleet.publish("twice", max_tokens=10)
    await slow_fleet.frames("twice", at_least=1)
    body = b'{"type":"completion","id":"twice","prompt":"other","max_tokens":2}'
    await slow_fleet.client.publish_prompt(LANE, body, msg_id="another message id")
    frames = await slow_fleet.frames("twice")
    assert frames[-1].usage == Usage(prompt_tokens=5, completion_tokens=10)
    await slow_fleet.wait_until_empty()
    assert sum(frame.terminal for frame in await slow_fleet.frames("twice")) == 1


async def test_a_copy_that_another_worker_pulls_leaves_the_tape_of_the_first_alone() -> None:
    fleet = Fleet(settings(step_s=0.02))
    await fleet.listen("t-acme")
    fleet.start_worker()
    try:
        await fleet.publish("twice", max_tokens=40)
        await fleet.frames("twice", at_least=1)
        fleet.workers[0][0].mounts["stub"].intake.stop()
        fleet.start_worker()
        body = b'{"type":"completion","id":"twice","prompt":"other","max_tokens":2}'
        await fleet.client.publish_prompt(LANE, body, msg_id="another message id")
        frames = await fleet.frames("twice")
        assert {frame.attempt for frame in frames} == {frames[0].attempt}
        assert frames[-1].usage == Usage(prompt_tokens=5, completion_tokens=40)
    finally:
        await fleet.stop()


async def test_what_a_lost_claim_had_begun_to_compute_does_not_leak(slow_fleet: Fleet) -> None:
    seq = await slow_fleet.publish("again", max_tokens=6)
    claim = Claim(worker="dead", state="released", prompt=seq)
    await slow_fleet.client.put_claim(RequestKey("t-acme", "again"), claim, expected_seq=0)
    slow_fleet.start_worker()
    frames = await slow_fleet.frames("again")
    assert [frame.index for frame in frames] == list(range(6))
    assert frames[-1].usage == Usage(prompt_tokens=5, completion_tokens=6)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"type":"completion","id":"' + b"." * 100 + b'","prompt":"x","max_tokens":1}', "invalid_request"),
        (b'{"type":"completion","x":' + b"[" * 100_000, "invalid_json"),
    ],
)
async def test_a_body_without_a_usable_id_is_answered_under_its_sequence(fleet: Fleet, body: bytes, code: str) -> None:
    fleet.start_worker()
    receipt = await fleet.client.publish_prompt(LANE, body, msg_id="")
    error = (await fleet.frames(f"seq-{receipt.seq}"))[-1].error
    assert error is not None
    assert error.code == code
    await fleet.wait_until_empty()


async def test_a_cancel_of_what_nobody_asked_for_leaves_nothing(fleet: Fleet) -> None:
    fleet.start_worker()
    await fleet.publish("r1")
    await fleet.frames("r1")
    await fleet.wait_until_empty()
    async with asyncio.timeout(30):
        while fleet.workers[0][0].mounts["stub"].intake.awaits("acme"):
            await asyncio.sleep(0.01)
    await fleet.client.send_cancel(RequestKey("t-acme", "no such request"))
    await fleet.publish("r2")
    await fleet.frames("r2")
    assert (await fleet.client.read_tape(RequestKey("t-acme", "no such request"))).claim is None


async def test_echo_repeats_the_prompt_to_the_letter(fleet: Fleet) -> None:
    fleet.start_worker()
    prompts = ["<|im_start|> one", " two "]
    await fleet.publish("echo", prompt=prompts, n=2, echo=True)
    frames = await fleet.frames("echo")
    for choice in range(4):
        said = "".join(frame.text for frame in frames if frame.choice == choice)
        assert said.startswith(prompts[choice // 2] + "[stub] ")


async def test_metrics_tell_what_happened(fleet: Fleet) -> None:
    worker = fleet.start_worker()
    await fleet.publish("r1", created=time.time())
    await fleet.frames("r1")
    await fleet.wait_until_empty()
    Meter(fleet._metrics).read(worker.mounts)

    def value(name: str, **labels: str) -> float | None:
        return fleet.registry.get_sample_value(name, {"model": "stub", **labels})

    assert value("inferflux_worker_requests_total", outcome="finished") == 1
    assert value("inferflux_generation_tokens_total") == 4
    assert value("inferflux_kv_pages_in_use") == 0
    assert value("inferflux_request_queue_time_seconds_count") == 1


async def test_a_hung_engine_loses_its_prompts_and_ends_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, released = threading.Event(), threading.Event()
    compute = StubBackend.run

    def run(self: StubBackend, batch: Sequence[Chunk]) -> list[Sample]:
        if not stuck.is_set():
            stuck.set()
            released.wait()
        return compute(self, batch)

    monkeypatch.setattr(StubBackend, "run", run)
    queue = msgspec.structs.replace(settings().queue, lease_s=1.0)
    fleet = Fleet(msgspec.structs.replace(settings(), queue=queue, worker=WorkerSettings(hang_timeout_s=0.3)))
    await fleet.listen("t-acme")
    hung = fleet.start_worker()
    await fleet.publish("r1")
    async with asyncio.timeout(30):
        await fleet.workers[0][1]
    assert hung.hung == {"stub"}
    fleet.settings = settings()
    fleet.start_worker()
    frames = await fleet.frames("r1")
    released.set()
    assert frames[-1].usage is not None
    last = await fleet.client.last_claim(RequestKey("t-acme", "r1"))
    assert last is None or last[1].num_attempts == 2
    await fleet.stop()
    await hung.hosts[0].close()


async def test_weights_and_shares_change_while_it_runs(slow_fleet: Fleet) -> None:
    worker = slow_fleet.start_worker()
    await slow_fleet.publish("long", max_tokens=LONG, ignore_eos=True)
    await slow_fleet.frames("long", at_least=1)
    fair = worker.mounts["stub"].intake.fair

    def weight() -> float:
        return next((share.weight for share in fair.snapshot() if share.tenant == "acme"), 0.0)

    async with asyncio.timeout(30):
        while weight() != 1.0:
            await asyncio.sleep(0.01)
        await FairnessStore(PolicyStore(slow_fleet.client)).change({"acme": 4.0}, {"batch": 0.5})
        while weight() != 4.0 or fair._min_share.batch != 0.5:
            await asyncio.sleep(0.01)


async def test_the_turns_of_a_conversation_come_back_to_the_worker_that_has_its_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # How long the other leaves a prompt to the one that has its beginning: here as long as a busy machine needs.
    monkeypatch.setattr(placement, "WAIT_S", 60.0)
    queue = msgspec.structs.replace(settings().queue, resync_interval_s=60.0)
    fleet = Fleet(msgspec.structs.replace(settings(), queue=queue))
    await fleet.listen("a-one")
    workers = [fleet.start_worker(), fleet.start_worker()]
    try:
        for conversation in range(3):
            home: Worker | None = None
            turns = [{"role": "user", "content": f"This is conversation number {conversation}. Hello!"}]
            opening = Message(role="user", content=turns[0]["content"])
            prefix = prefix_digest(ChatPrompt(id="", messages=(opening,)), "tenant:acme")
            assert prefix is not None
            for turn in range(4):
                before = [worker.hosts[0].stats().generated_tokens for worker in workers]
                request = f"c{conversation}t{turn}"
                await fleet.publish(request, stamped="a-one", type="chat", prompt="", messages=list(turns))
                answer = text(await fleet.frames(request, "a-one"))
                after = [worker.hosts[0].stats().generated_tokens for worker in workers]
                (served,) = (worker for worker, old, new in zip(workers, before, after, strict=True) if new > old)
                assert served is (home or served), f"turn {turn} went elsewhere"
                home = served
                turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Go on."}]
                (other,) = (worker for worker in workers if worker is not home)
                async with asyncio.timeout(30):
                    fair = other.mounts["stub"].intake.fair
                    while not any(prefix in peer.prefixes for peer in fair.peers(time.monotonic())):
                        await asyncio.sleep(0.01)
    finally:
        await fleet.stop()


@pytest.mark.parametrize("answered", [True, False])
async def test_a_turn_that_the_other_worker_pulls_is_forwarded_and_computed_once(
    monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    queue = msgspec.structs.replace(settings().queue, resync_interval_s=60.0)
    fleet = Fleet(msgspec.structs.replace(settings(), queue=queue))
    await fleet.listen("a-one")
    home, other = (fleet.start_worker() for _ in range(2))
    opening = Message(role="user", content="Hello!")
    prefix = prefix_digest(ChatPrompt(id="", messages=(opening,)), "tenant:acme")
    assert prefix is not None
    try:
        async with asyncio.timeout(30):
            while not all("stub" in worker.mounts and worker.mounts["stub"].intake._bells for worker in (home, other)):
                await asyncio.sleep(0.01)
            intake = home.mounts["stub"].intake
            assert intake._bells is not None
            await intake._bells.close()
            intake.placement.remember(prefix)
            while not any(prefix in peer.prefixes for peer in other.mounts["stub"].intake.fair.peers(time.monotonic())):
                await asyncio.sleep(0.01)
        if not answered:
            monkeypatch.setattr(memory, "FORWARD_S", 0.0)
        turn = [{"role": "user", "content": "Hello!"}]
        await fleet.publish("turn", stamped="a-one", type="chat", prompt="", messages=turn)
        frames = await fleet.frames("turn", "a-one")
        await fleet.wait_until_empty()
        assert len({frame.attempt for frame in frames}) == 1
        assert sum(frame.terminal for frame in frames) == 1
        Meter(fleet._metrics).read(other.mounts)
        outcome = "taken" if answered else "unanswered"

        def value(name: str, outcome: str) -> float | None:
            return fleet.registry.get_sample_value(name, {"model": "stub", "outcome": outcome})

        assert value("inferflux_worker_prompts_offered_total", outcome) == 1
        async with asyncio.timeout(30):
            while home.num_attempts + other.num_attempts:
                await asyncio.sleep(0.01)
        assert value("inferflux_worker_requests_total", "finished") == 1
        assert value("inferflux_worker_requests_total", "forwarded") == (None if answered else 1)
        if answered:
            assert home.hosts[0].stats().generated_tokens
    finally:
        await fleet.stop()


async def test_a_higher_class_takes_a_batch_slot_and_batch_goes_on_where_it_was(slow_fleet: Fleet) -> None:
    fleet = slow_fleet
    fleet.start_worker()
    batch = Lane("stub", ServiceClass.BATCH, "acme")
    for number in range(4):
        await fleet.publish(f"batch{number}", batch, prompt=f"batch {number}", max_tokens=120, ignore_eos=True)
    for number in range(4):
        await fleet.frames(f"batch{number}", at_least=3)
    await fleet.publish("default", prompt="default", max_tokens=3)
    assert (await fleet.frames("default"))[-1].usage is not None
    unfinished = [number for number in range(4) if not (await fleet.frames(f"batch{number}", at_least=1))[-1].terminal]
    assert len(unfinished) == 4
    for number in range(4):
        frames = await fleet.frames(f"batch{number}")
        assert frames[-1].usage == Usage(prompt_tokens=7, completion_tokens=120)
        ends = [frame.index + frame.num_tokens for frame in frames if frame.num_tokens]
        assert [frame.index for frame in frames if frame.num_tokens] == [0, *ends[:-1]]
    assert fleet.workers[0][0].hosts[0].stats().num_preemptions == 1
    await fleet.wait_until_empty()


async def test_quick_tokens_travel_together_and_each_keeps_its_piece() -> None:
    quick = settings(step_s=0.002)
    # The first tokens leave at once, and the others with the end.
    runtime = msgspec.structs.replace(quick.runtime, frame_interval_s=3600.0)
    fleet = Fleet(msgspec.structs.replace(quick, runtime=runtime))
    await fleet.listen("t-acme")
    fleet.start_worker()
    try:
        await fleet.publish("quick", max_tokens=40, ignore_eos=True)
        frames = await fleet.frames("quick")
        assert len(frames) <= 2
        assert sum(frame.num_tokens for frame in frames) == 40
        assert all(len(frame.pieces or "x") == frame.num_tokens for frame in frames)
    finally:
        await fleet.stop()
