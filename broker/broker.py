"""The seam between InferFlux and its broker: two implementations, `JetStreamBroker` and `MemoryBroker`.

Every call may raise `BrokerUnavailable`. Callbacks given to `listen_*` are plain functions, called on the event loop
in the order of the stream; they must not block and must not raise.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import msgspec

from .subjects import Counter, Lane, RequestKey, Series
from .wire.requests import Claim, Head, ends


class Receipt(msgspec.Struct, frozen=True):
    """The prompt stream's answer to a publish. A duplicate was accepted earlier, under the same message id."""

    seq: int
    duplicate: bool


class Bell(msgspec.Struct, frozen=True):
    """The headers of a prompt that has just been stored in a lane."""

    lane: Lane
    seq: int
    headers: Mapping[str, str]


class Reply(msgspec.Struct, frozen=True):
    """A frame as its owner sees it: `last_seq` is the tape's sequence of the request's previous frame, or 0."""

    key: RequestKey
    seq: int
    last_seq: int
    body: bytes


class StoredPrompt(msgspec.Struct, frozen=True):
    """A prompt in the stream, queued or in flight. `stored_s` is Unix time, by the broker's clock."""

    seq: int
    lane: Lane
    body: bytes
    headers: Mapping[str, str]
    stored_s: float


class TapeEntry(msgspec.Struct, frozen=True):
    """A stored frame and its sequence in the tape."""

    seq: int
    body: bytes


class Tape(msgspec.Struct, frozen=True):
    """All that is stored of one request: its newest claim (None and 0 when there is none) and its frames in order."""

    claim: Claim | None
    claim_seq: int
    frames: tuple[TapeEntry, ...]

    @property
    def end(self) -> bytes | None:
        """Body of the newest terminal frame among these; None when there is none."""
        return next((entry.body for entry in reversed(self.frames) if ends(entry.body)), None)


class LaneLimits(msgspec.Struct, frozen=True):
    """How a lane's consumer is made: prompts in flight at most, the lease, and when an idle consumer goes away."""

    max_running: int
    lease_s: float
    idle_s: float


class Entry(msgspec.Struct, frozen=True):
    """One KV entry; `value` is None when the key was deleted or has expired (seen by watchers only)."""

    key: str
    value: bytes | None
    revision: int


class Subscription(Protocol):
    """What `listen_*` returns."""

    async def close(self) -> None: ...


class Delivery(Protocol):
    """A prompt held under a lease. `num_pending` is what its lane still holds behind it."""

    @property
    def lane(self) -> Lane: ...
    @property
    def body(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def seq(self) -> int: ...
    @property
    def stored_s(self) -> float:
        """When the prompt was stored, in Unix time by the broker's clock."""

    @property
    def num_delivered(self) -> int: ...
    @property
    def num_pending(self) -> int: ...

    async def ack(self) -> None:
        """Remove the prompt from its lane. Waits for the stream's confirmation."""

    async def extend(self) -> None:
        """Start the lease anew."""

    async def release(self, delay_s: float = 0.0) -> None:
        """Hand the prompt back; it is delivered again after the delay."""


class Offer(msgspec.Struct, frozen=True):
    """What a worker says of itself with a prompt that it offers: its id, the share of its slots that is taken, and the
    tokens that the prompt's lane has paid for it."""

    worker: str
    load: float
    num_paid: int = 0


class Forwarded(msgspec.Struct, frozen=True):
    """A prompt that another worker has pulled and offers. `answer` says whether it is taken, once."""

    delivery: Delivery
    offer: Offer
    answer: Callable[[bool], None]


class Bucket(Protocol):
    """One KV bucket. Keys are subject tokens joined by dots."""

    async def get(self, key: str) -> Entry | None: ...

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        """Returns the new revision. `ttl_s` is refused by buckets that do not expire."""

    async def create(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        """Raises RevisionConflict when the key exists."""

    async def update(self, key: str, value: bytes, revision: int, *, ttl_s: float | None = None) -> int:
        """Raises RevisionConflict when the entry is not at `revision`."""

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Deleting what is not there is fine. Raises RevisionConflict when a given revision is not current."""

    async def entries(self) -> list[Entry]: ...

    async def keys(self) -> list[str]:
        """The keys of all entries, without fetching their values."""

    def watch(self) -> AsyncIterator[Entry | None]:
        """All current entries, then None once, then every change; survives reconnects. Close with `aclose()`."""


class ChunkStore(Protocol):
    """What an object store keeps: numbered chunks of objects, and a description of each object that is complete.

    Names are subject tokens joined by dots, `subjects.object_name`.
    """

    @property
    def name(self) -> str: ...

    async def put(self, name: str, number: int, data: bytes, *, fresh: bool = False) -> None:
        """Store a chunk, or replace it. Raises StoreFull, MessageTooLarge, and with `fresh` RevisionConflict where it
        is there already."""

    async def get(self, name: str, number: int) -> bytes | None: ...

    async def purge(self, name: str) -> None:
        """Remove every chunk of an object; none at all is fine."""

    async def names(self) -> dict[str, int]:
        """Every object that has chunks, described or not, and how many."""

    async def stored_s(self, name: str, number: int) -> float | None:
        """When a chunk was stored, in Unix time by the broker's clock."""

    async def describe(self, name: str, about: bytes) -> None:
        """Raises RevisionConflict where there is a description."""

    async def about(self, name: str) -> bytes | None: ...

    async def described(self) -> list[str]:
        """The names of all objects that have a description."""

    async def forget(self, name: str) -> bool:
        """Remove a description; False where there is none."""


class Broker(Protocol):
    """Prompts, tape, hints and KV: all that an API replica or a worker needs of the broker."""

    @property
    def connected(self) -> bool: ...

    async def publish_prompt(
        self, lane: Lane, body: bytes, *, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> Receipt:
        """Store a prompt; a lost ack is retried with the same message id before giving up.

        Raises QueueFull, MessageTooLarge.
        """

    async def drop_prompt(self, seq: int) -> bool:
        """Delete a stored prompt, held or not. False when it is gone already."""

    async def read_prompt(self, seq: int) -> tuple[Lane, bytes, Mapping[str, str]] | None:
        """A stored prompt as it was published, or None when it is gone."""

    async def next_prompt(self, after_seq: int, lane: Lane | None = None) -> StoredPrompt | None:
        """The oldest prompt after a sequence, of one lane or of all, held or not. Brings its whole body.

        Of all, it also removes what it passes on subjects that name no lane.
        """

    async def in_flight(self) -> dict[Lane, int]:
        """Prompts of each lane that were delivered and not acknowledged yet; for people, not for every second."""

    async def backlog(self, model: str | None = None) -> dict[Lane, int]:
        """Prompts stored in each lane, queued and in flight, of one model or of all."""

    async def listen_bells(self, model: str, on_bell: Callable[[Bell], None]) -> Subscription: ...

    async def pull(self, lane: Lane, limits: LaneLimits) -> Delivery | None:
        """The lane's next prompt, or None at once when nothing waits or the lane runs as much as it may.

        Creates the lane's consumer when it is missing. Raises TooManyLanes.
        """

    def send_head(self, key: RequestKey, head: Head) -> asyncio.Future[int]:
        """Note on the tape what another replica needs to answer this request; the future is as `send_frame`'s."""

    async def read_head(self, key: RequestKey) -> Head | None: ...

    async def heads(self) -> list[RequestKey]:
        """Every request that has a head on the tape."""

    async def put_claim(self, key: RequestKey, claim: Claim, *, expected_seq: int) -> int:
        """Write a claim if the newest one is at `expected_seq` (0: none). Returns its sequence. Raises ClaimLost."""

    async def last_claim(self, key: RequestKey) -> tuple[int, Claim] | None: ...

    async def claimed(self) -> list[RequestKey]:
        """Every request that has a claim on the tape."""

    async def claims(self, key: RequestKey) -> tuple[Claim, ...]:
        """Every claim of a request that the tape still holds, oldest first."""

    def send_frame(self, key: RequestKey, body: bytes) -> asyncio.Future[int]:
        """Publish a frame at once; the future is the tape's acknowledgement (its sequence).

        It fails with TapeFull, MessageTooLarge or BrokerUnavailable; a failure that nobody awaits is not logged.
        Frames of one request keep their order.
        """

    async def put_terminal(self, key: RequestKey, body: bytes, *, fence: int) -> int:
        """Store the terminal frame if the newest claim is still the one at `fence`. Raises ClaimLost, TapeFull,
        MessageTooLarge.

        A second one under the same fence changes nothing and returns the sequence of the first.
        """

    async def read_tape(self, key: RequestKey, *, after_seq: int = 0) -> Tape:
        """What the tape holds of a request; frames after `after_seq` only."""

    async def purge_tape(self, key: RequestKey) -> None: ...

    async def tape_fill(self) -> float:
        """Share of the tape's byte limit that is in use, 0 to 1."""

    async def listen_replies(
        self, owner: str, on_reply: Callable[[Reply], None], *, request: str | None = None
    ) -> Subscription:
        """Every frame of one owner's requests, or of one request, live."""

    async def send_cancel(self, key: RequestKey) -> None:
        """Hint to every worker that a request was cancelled; the claim decides."""

    async def listen_cancels(self, on_cancel: Callable[[RequestKey], None]) -> Subscription: ...

    async def send_gossip(self, model: str, body: bytes) -> None: ...

    async def listen_gossip(self, model: str, on_gossip: Callable[[bytes], None]) -> Subscription: ...

    async def forward(self, delivery: Delivery, to: str, offer: Offer) -> bool:
        """Offer a prompt that was pulled to another worker, named by its epoch, which holds it from now on if it takes
        it.

        False when it does not, or is not there. Raises BrokerUnavailable when no answer came: it may have taken it.
        """

    async def listen_forwards(self, model: str, epoch: str, on_forward: Callable[[Forwarded], None]) -> Subscription:
        """Prompts that are offered to one worker process, which is to answer soon."""

    async def count(self, counter: Counter, add: int, *, msg_id: str | None = None) -> int | None:
        """Add to a counter, any whole number, and its new value; None when this was counted before under `msg_id`."""

    async def counted(self, counter: Counter) -> int:
        """A counter's value, 0 where nothing was counted."""

    async def counters(self, series: Series, parts: tuple[str | None, ...]) -> dict[Counter, int]:
        """Every counter of a series whose parts are these (None: any) that has counted something."""

    async def bucket(self, name: str) -> Bucket: ...

    def chunks(self, store: str) -> ChunkStore:
        """The chunks of an object store; `objects.Objects` makes objects of them."""

    async def close(self) -> None:
        """Flush what was sent, then disconnect."""
