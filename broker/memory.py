"""The broker in memory: the same semantics in one process, by an injected clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from inferflux.config.logs import get_logger
from inferflux.config.settings import Settings

from . import subjects
from .broker import (
    Bell,
    Broker,
    Bucket,
    ChunkStore,
    Delivery,
    Forwarded,
    LaneLimits,
    Offer,
    Receipt,
    Reply,
    StoredPrompt,
    Subscription,
    Tape,
)
from .counters import MemoryCounters
from .errors import BrokerError, BrokerUnavailable
from .forwards import FORWARD_S
from .memory_bucket import MemoryBucket
from .memory_chunks import MemoryChunks, StoredChunks
from .memory_prompts import Held, MemoryPrompts
from .memory_tape import MemoryTape
from .subjects import BUCKETS, OBJECT_STORES, Counter, Lane, RequestKey, Series
from .topology import retention
from .wire.requests import Claim, Head

T = TypeVar("T")

log = get_logger("broker")


class MemorySubscription(Subscription):
    """One listener on one topic."""

    def __init__(self, listeners: set[MemorySubscription], deliver: Callable[[object], None]) -> None:
        self._listeners = listeners
        self.deliver = deliver
        listeners.add(self)

    async def close(self) -> None:
        self._listeners.discard(self)


class MemoryHub:
    """What all memory brokers of one test or process share. Time passes only as `clock` says; after moving a clock
    of your own, `settle()` tells watchers what has expired. `online = False` is an outage."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, settings: Settings | None = None) -> None:
        settings = Settings() if settings is None else settings
        self.online = True
        self.prompts = MemoryPrompts(clock, settings.queue, lambda bell: self.tell(("bell", bell.lane.model), bell))
        self.tape = MemoryTape(clock, settings.tape, lambda reply: self.tell(("reply", reply.key.owner), reply))
        self.buckets = {name: MemoryBucket(name, clock, retention(name, settings)) for name in BUCKETS}
        self.objects = {name: StoredChunks(clock) for name in OBJECT_STORES}
        self.counters = MemoryCounters()
        self._topics: dict[tuple[str, str], set[MemorySubscription]] = {}

    def settle(self) -> None:
        """Let everything happen that is due by the clock."""
        for bucket in self.buckets.values():
            bucket.expire()

    def listen(self, topic: tuple[str, str], deliver: Callable[[object], None]) -> MemorySubscription:
        return MemorySubscription(self._topics.setdefault(topic, set()), deliver)

    def hears(self, topic: tuple[str, str]) -> bool:
        """Whether anybody listens."""
        return bool(self._topics.get(topic))

    def tell(self, topic: tuple[str, str], message: object) -> None:
        for subscription in tuple(self._topics.get(topic, ())):
            asyncio.get_running_loop().call_soon(_deliver, subscription, message)


class _Forward(msgspec.Struct, frozen=True):
    """A prompt that is being forwarded; `taken` is the answer."""

    held: Held
    offer: Offer
    taken: asyncio.Future[bool]

    def answer(self, taken: bool) -> None:
        """Too late once nobody waits for it any more."""
        if not self.taken.done():
            self.taken.set_result(taken)


class MemoryDelivery(Delivery):
    """A prompt held by one memory broker, as it was delivered."""

    def __init__(self, broker: MemoryBroker, held: Held) -> None:
        self._broker = broker
        self.held = held

    @property
    def lane(self) -> Lane:
        return self.held.lane

    @property
    def body(self) -> bytes:
        return self.held.body

    @property
    def headers(self) -> Mapping[str, str]:
        return self.held.headers

    @property
    def seq(self) -> int:
        return self.held.seq

    @property
    def stored_s(self) -> float:
        return self.held.stored_s

    @property
    def num_delivered(self) -> int:
        return self.held.num_delivered

    @property
    def num_pending(self) -> int:
        return self.held.num_pending

    async def ack(self) -> None:
        self._broker.hub.prompts.drop(self.seq)

    async def extend(self) -> None:
        self._broker.hub.prompts.extend(self.seq)

    async def release(self, delay_s: float = 0.0) -> None:
        self._broker.hub.prompts.release(self.seq, delay_s)


class MemoryBroker(Broker):
    """One process's view of a hub."""

    def __init__(self, hub: MemoryHub) -> None:
        self._hub = hub
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._hub.online and not self._closed

    @property
    def hub(self) -> MemoryHub:
        """The shared state. Raises BrokerUnavailable while it cannot be reached."""
        if not self.connected:
            raise BrokerUnavailable("the memory broker is closed or offline")
        return self._hub

    async def publish_prompt(
        self, lane: Lane, body: bytes, *, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> Receipt:
        return self.hub.prompts.publish(lane, body, msg_id, headers or {})

    async def drop_prompt(self, seq: int) -> bool:
        return self.hub.prompts.drop(seq)

    async def read_prompt(self, seq: int) -> tuple[Lane, bytes, Mapping[str, str]] | None:
        return self.hub.prompts.read(seq)

    async def next_prompt(self, after_seq: int, lane: Lane | None = None) -> StoredPrompt | None:
        return self.hub.prompts.next(after_seq, lane)

    async def in_flight(self) -> dict[Lane, int]:
        return self.hub.prompts.in_flight()

    async def backlog(self, model: str | None = None) -> dict[Lane, int]:
        counts = self.hub.prompts.backlog()
        return {lane: count for lane, count in counts.items() if model is None or lane.model == model}

    async def listen_bells(self, model: str, on_bell: Callable[[Bell], None]) -> Subscription:
        return self._listen("bell", model, Bell, on_bell)

    async def pull(self, lane: Lane, limits: LaneLimits) -> Delivery | None:
        held = self.hub.prompts.pull(lane, limits)
        return None if held is None else MemoryDelivery(self, held)

    def send_head(self, key: RequestKey, head: Head) -> asyncio.Future[int]:
        return _sent(lambda: self.hub.tape.put_head(key, head))

    async def read_head(self, key: RequestKey) -> Head | None:
        return self.hub.tape.head(key)

    async def heads(self) -> list[RequestKey]:
        return self.hub.tape.heads()

    async def put_claim(self, key: RequestKey, claim: Claim, *, expected_seq: int) -> int:
        return self.hub.tape.put_claim(key, claim, expected_seq)

    async def last_claim(self, key: RequestKey) -> tuple[int, Claim] | None:
        return self.hub.tape.last_claim(key)

    async def claimed(self) -> list[RequestKey]:
        return self.hub.tape.claimed()

    async def claims(self, key: RequestKey) -> tuple[Claim, ...]:
        return self.hub.tape.claims(key)

    def send_frame(self, key: RequestKey, body: bytes) -> asyncio.Future[int]:
        return _sent(lambda: self.hub.tape.put_frame(key, body))

    async def put_terminal(self, key: RequestKey, body: bytes, *, fence: int) -> int:
        return self.hub.tape.put_terminal(key, body, fence)

    async def read_tape(self, key: RequestKey, *, after_seq: int = 0) -> Tape:
        return self.hub.tape.read(key, after_seq)

    async def purge_tape(self, key: RequestKey) -> None:
        self.hub.tape.purge(key)

    async def tape_fill(self) -> float:
        return self.hub.tape.fill

    async def listen_replies(
        self, owner: str, on_reply: Callable[[Reply], None], *, request: str | None = None
    ) -> Subscription:
        def on_any(reply: Reply) -> None:
            if request in (None, reply.key.request):
                on_reply(reply)

        return self._listen("reply", owner, Reply, on_any)

    async def send_cancel(self, key: RequestKey) -> None:
        self.hub.tell(("cancel", ""), key)

    async def listen_cancels(self, on_cancel: Callable[[RequestKey], None]) -> Subscription:
        return self._listen("cancel", "", RequestKey, on_cancel)

    async def send_gossip(self, model: str, body: bytes) -> None:
        self.hub.tell(("gossip", model), body)

    async def listen_gossip(self, model: str, on_gossip: Callable[[bytes], None]) -> Subscription:
        return self._listen("gossip", model, bytes, on_gossip)

    async def forward(self, delivery: Delivery, to: str, offer: Offer) -> bool:
        assert isinstance(delivery, MemoryDelivery), "it was pulled from another broker"
        topic = ("forward", subjects.forward(delivery.lane.model, to))
        if not self.hub.hears(topic):
            return False
        forward = _Forward(delivery.held, offer, asyncio.get_running_loop().create_future())
        self.hub.tell(topic, forward)
        try:
            async with asyncio.timeout(FORWARD_S):
                return await forward.taken
        except TimeoutError:
            raise BrokerUnavailable(f"no answer from {to}") from None

    async def listen_forwards(self, model: str, epoch: str, on_forward: Callable[[Forwarded], None]) -> Subscription:
        def hear(forward: _Forward) -> None:
            on_forward(Forwarded(MemoryDelivery(self, forward.held), forward.offer, forward.answer))

        return self._listen("forward", subjects.forward(model, epoch), _Forward, hear)

    async def bucket(self, name: str) -> Bucket:
        return self.hub.buckets[name]

    async def count(self, counter: Counter, add: int, *, msg_id: str | None = None) -> int | None:
        return self.hub.counters.count(counter, add, msg_id)

    async def counted(self, counter: Counter) -> int:
        return self.hub.counters.value(counter)

    async def counters(self, series: Series, parts: tuple[str | None, ...]) -> dict[Counter, int]:
        return self.hub.counters.matching(series, parts)

    def chunks(self, store: str) -> ChunkStore:
        return MemoryChunks(self, store)

    async def close(self) -> None:
        self._closed = True

    def _listen(self, kind: str, name: str, expected: type[T], callback: Callable[[T], None]) -> Subscription:
        def deliver(message: object) -> None:
            assert isinstance(message, expected)
            callback(message)

        return self.hub.listen((kind, name), deliver)


def _sent(store: Callable[[], int]) -> asyncio.Future[int]:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    try:
        future.set_result(store())
    except BrokerError as error:
        future.set_exception(error)
        # Marks it as seen: a failure that nobody awaits is not worth a warning.
        future.exception()
    return future


def _deliver(subscription: MemorySubscription, message: object) -> None:
    try:
        subscription.deliver(message)
    except Exception as error:
        log.error("handler failed", error=error)
