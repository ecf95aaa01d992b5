"""The prompt stream in memory: lanes, leases, redelivery, duplicates and full subjects, by the hub's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec

from inferflux.config.settings import QueueSettings

from .broker import Bell, LaneLimits, Receipt, StoredPrompt
from .errors import QueueFull, TooManyLanes
from .subjects import HEADER_MSG_ID, HEADER_SEQUENCE, Lane
from .topology import DUPLICATE_WINDOW_S

Clock = Callable[[], float]


class _Prompt(msgspec.Struct):
    """A stored prompt; `due_s` is when a delivered one may be delivered again, None before its first delivery."""

    seq: int
    lane: Lane
    body: bytes
    headers: Mapping[str, str]
    stored_s: float
    due_s: float | None = None
    num_delivered: int = 0


class _Consumer(msgspec.Struct):
    limits: LaneLimits
    used_s: float


class Held(msgspec.Struct, frozen=True):
    """One delivery as it was when it was made."""

    seq: int
    lane: Lane
    body: bytes
    headers: Mapping[str, str]
    stored_s: float
    num_delivered: int
    num_pending: int


class MemoryPrompts:
    """What the WorkQueue stream PROMPTS and its consumers do."""

    def __init__(self, clock: Clock, settings: QueueSettings, ring: Callable[[Bell], None]) -> None:
        self._clock = clock
        self._settings = settings
        self._ring = ring
        self._prompts: dict[int, _Prompt] = {}
        self._consumers: dict[Lane, _Consumer] = {}
        self._message_ids: dict[str, tuple[int, float]] = {}
        self._last_seq = 0

    def publish(self, lane: Lane, body: bytes, msg_id: str, headers: Mapping[str, str]) -> Receipt:
        now_s = self._clock()
        for old, (_, at_s) in tuple(self._message_ids.items()):
            if at_s + DUPLICATE_WINDOW_S > now_s:
                break
            del self._message_ids[old]
        if msg_id in self._message_ids:
            return Receipt(self._message_ids[msg_id][0], True)
        if self.backlog().get(lane, 0) >= self._settings.max_msgs_per_subject:
            raise QueueFull(f"{lane.tenant} has as many prompts waiting as a lane may hold")
        if sum(len(prompt.body) for prompt in self._prompts.values()) + len(body) > self._settings.max_bytes:
            raise QueueFull("the queue has no room for another prompt")
        self._last_seq += 1
        headers = {**headers, HEADER_MSG_ID: msg_id}
        self._prompts[self._last_seq] = _Prompt(self._last_seq, lane, body, headers, time.time())
        self._message_ids[msg_id] = (self._last_seq, now_s)
        self._ring(Bell(lane, self._last_seq, {**headers, HEADER_SEQUENCE: str(self._last_seq)}))
        return Receipt(self._last_seq, False)

    def drop(self, seq: int) -> bool:
        return self._prompts.pop(seq, None) is not None

    def read(self, seq: int) -> tuple[Lane, bytes, Mapping[str, str]] | None:
        prompt = self._prompts.get(seq)
        return None if prompt is None else (prompt.lane, prompt.body, prompt.headers)

    def next(self, after_seq: int, lane: Lane | None) -> StoredPrompt | None:
        for prompt in self._prompts.values():
            if prompt.seq > after_seq and lane in (None, prompt.lane):
                return StoredPrompt(prompt.seq, prompt.lane, prompt.body, prompt.headers, prompt.stored_s)
        return None

    def in_flight(self) -> dict[Lane, int]:
        counts: dict[Lane, int] = {}
        for prompt in self._prompts.values():
            if prompt.due_s is not None:
                counts[prompt.lane] = counts.get(prompt.lane, 0) + 1
        return counts

    def backlog(self) -> dict[Lane, int]:
        counts: dict[Lane, int] = {}
        for prompt in self._prompts.values():
            counts[prompt.lane] = counts.get(prompt.lane, 0) + 1
        return counts

    def pull(self, lane: Lane, limits: LaneLimits) -> Held | None:
        now_s = self._clock()
        self._forget_idle(now_s)
        consumer = self._consumers.get(lane)
        if consumer is None and len(self._consumers) >= self._settings.max_lanes:
            raise TooManyLanes(
                f"{len(self._consumers)} lanes are in use, and queue.max_lanes is {self._settings.max_lanes}"
            )
        self._consumers[lane] = _Consumer(limits, now_s)
        mine = [prompt for prompt in self._prompts.values() if prompt.lane == lane]
        delivered = [prompt for prompt in mine if prompt.due_s is not None]
        waiting = [prompt for prompt in mine if prompt.due_s is None]
        again = [prompt for prompt in delivered if prompt.due_s is not None and prompt.due_s <= now_s]
        if again:
            prompt = again[0]
        elif waiting and len(delivered) < limits.max_running:
            prompt = waiting.pop(0)
        else:
            return None
        prompt.due_s = now_s + limits.lease_s
        prompt.num_delivered += 1
        return Held(prompt.seq, lane, prompt.body, prompt.headers, prompt.stored_s, prompt.num_delivered, len(waiting))

    def extend(self, seq: int) -> None:
        prompt = self._prompts.get(seq)
        if prompt is not None and prompt.due_s is not None and prompt.lane in self._consumers:
            consumer = self._consumers[prompt.lane]
            consumer.used_s = self._clock()
            prompt.due_s = consumer.used_s + consumer.limits.lease_s

    def release(self, seq: int, delay_s: float) -> None:
        prompt = self._prompts.get(seq)
        if prompt is not None and prompt.due_s is not None:
            prompt.due_s = self._clock() + delay_s

    def _forget_idle(self, now_s: float) -> None:
        for lane, consumer in tuple(self._consumers.items()):
            if now_s - consumer.used_s <= consumer.limits.idle_s:
                continue
            del self._consumers[lane]
            # The next consumer of the lane knows nothing of earlier deliveries.
            for prompt in self._prompts.values():
                if prompt.lane == lane:
                    prompt.due_s, prompt.num_delivered = None, 0
