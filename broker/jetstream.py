"""The broker on NATS JetStream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from inferflux.config.logs import get_logger
from inferflux.config.settings import Settings

from . import subjects, topology
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
from .bucket import JetStreamBucket
from .chunks import JetStreamChunks
from .counters import StreamCounters
from .credentials import ROLE_ADMIN, ROLE_API, Connection, resolve
from .delivery import JetStreamDelivery, delete_prompt
from .errors import BrokerError, InferFluxError, QueueFull
from .forwards import Forwards
from .frames import FramePublisher
from .jetstream_api import ERR_INSUFFICIENT_RESOURCES, ERR_STREAM_STORE_FAILED, ApiError, JetStreamApi
from .lanes import Lanes
from .link import Link
from .packet import Packet
from .subjects import STREAM_PROMPTS, STREAM_TAPE, Counter, Lane, RequestKey, Series
from .tape import TapeStream
from .wire.base import encode
from .wire.requests import Claim, Head

CONNECT_DEADLINE_S = 15.0

log = get_logger("broker")


class JetStreamBroker(Broker):
    """One process's view of the broker, over one connection."""

    def __init__(self, settings: Settings, link: Link) -> None:
        self._settings = settings
        self._link = link
        self._ensuring: asyncio.Task[None] | None = None
        self._js = JetStreamApi(link, timeout_s=settings.broker.timeout_s)
        self._lanes = Lanes(link, self._js, max_lanes=settings.queue.max_lanes)
        self._frames = FramePublisher(link, timeout_s=settings.tape.ack_timeout_s)
        self._tape = TapeStream(link, self._js)
        self._counters = StreamCounters(link, self._js)
        self._forwards = Forwards(link, self._js)

    @classmethod
    async def connect(
        cls,
        settings: Settings,
        role: str,
        name: str,
        *,
        connection: Connection | None = None,
        deadline_s: float = CONNECT_DEADLINE_S,
    ) -> JetStreamBroker:
        """Connect as a role; `api` and `admin` create the streams, others wait for them.

        Raises ConfigError for what a person must fix, BrokerUnavailable when the deadline passes.
        """
        link = Link(
            resolve(settings.broker, role) if connection is None else connection,
            name=name,
            timeout_s=settings.broker.timeout_s,
        )
        broker = cls(settings, link)
        try:
            await link.open(deadline_s)
            if role in (ROLE_API, ROLE_ADMIN):
                await topology.ensure(broker._js, settings, deadline_s)
                link.on_restored.append(broker._ensure_again)
            else:
                await topology.wait(broker._js, settings, deadline_s)
            for part in (broker._lanes, broker._frames, broker._tape, broker._counters):
                await part.open()
            await link.flush()
            if link.max_payload < settings.server.max_body_bytes:
                log.warning(
                    "NATS takes less than the API does: raise its max_payload, or lower server.max_body_bytes",
                    max_payload=link.max_payload,
                    max_body_bytes=settings.server.max_body_bytes,
                )
        except BaseException:
            await link.close()
            raise
        return broker

    @property
    def connected(self) -> bool:
        return self._link.connected

    async def publish_prompt(
        self, lane: Lane, body: bytes, *, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> Receipt:
        try:
            ack = await self._js.publish(
                subjects.infer(lane), body, {**(headers or {}), subjects.HEADER_MSG_ID: msg_id}
            )
        except ApiError as error:
            if error.err_code == ERR_STREAM_STORE_FAILED and "per subject" in error.description:
                raise QueueFull(f"{lane.tenant} has as many prompts waiting as a lane may hold") from error
            if "maximum bytes exceeded" in error.description or error.err_code in ERR_INSUFFICIENT_RESOURCES:
                raise QueueFull("the queue has no room for another prompt") from error
            raise
        return Receipt(ack.seq, ack.duplicate)

    async def drop_prompt(self, seq: int) -> bool:
        return await delete_prompt(self._js, seq)

    async def read_prompt(self, seq: int) -> tuple[Lane, bytes, Mapping[str, str]] | None:
        stored = await self._js.stored(STREAM_PROMPTS, seq=seq)
        return None if stored is None else (subjects.parse_lane(stored.subject), stored.data, stored.headers)

    async def next_prompt(self, after_seq: int, lane: Lane | None = None) -> StoredPrompt | None:
        wanted = subjects.INFER_ALL if lane is None else subjects.infer(lane)
        while True:
            stored = await self._js.stored(STREAM_PROMPTS, seq=after_seq + 1, next_by_subj=wanted)
            if stored is None:
                return None
            try:
                found = subjects.parse_lane(stored.subject)
            except ValueError:
                # Nobody pulls it or can answer it, and it would take up room for ever.
                log.warning("removed a prompt on a subject that is no lane", subject=stored.subject)
                await self.drop_prompt(stored.seq)
                after_seq = stored.seq
                continue
            return StoredPrompt(stored.seq, found, stored.data, stored.headers, stored.stored_s)

    async def in_flight(self) -> dict[Lane, int]:
        counts: dict[str, int] = {}
        num_seen = 0
        while True:
            page = await self._js.call("CONSUMER", "LIST", STREAM_PROMPTS, body={"offset": num_seen})
            for each in page.get("consumers") or ():
                counts[each["config"]["filter_subject"]] = int(each["num_ack_pending"])
            num_seen += int(page["limit"])
            if num_seen >= int(page["total"]):
                return _by_lane({subject: count for subject, count in counts.items() if count})

    async def backlog(self, model: str | None = None) -> dict[Lane, int]:
        wanted = subjects.INFER_ALL if model is None else subjects.infer_filter(model)
        return _by_lane(await self._js.subject_counts(STREAM_PROMPTS, wanted))

    async def listen_bells(self, model: str, on_bell: Callable[[Bell], None]) -> Subscription:
        def on_packet(packet: Packet) -> None:
            headers = packet.headers
            on_bell(Bell(subjects.parse_lane(packet.subject), int(headers[subjects.HEADER_SEQUENCE]), headers))

        return await self._listen(subjects.bell_filter(model), on_packet)

    async def pull(self, lane: Lane, limits: LaneLimits) -> Delivery | None:
        return await self._lanes.pull(lane, limits)

    def send_head(self, key: RequestKey, head: Head) -> asyncio.Future[int]:
        return self._frames.send(subjects.head(key), encode(head))

    async def read_head(self, key: RequestKey) -> Head | None:
        return await self._tape.read_head(key)

    async def heads(self) -> list[RequestKey]:
        return [subjects.parse_key(name) for name in await self._js.subject_counts(STREAM_TAPE, subjects.HEAD_ALL)]

    async def put_claim(self, key: RequestKey, claim: Claim, *, expected_seq: int) -> int:
        return await self._tape.put_claim(key, claim, expected_seq=expected_seq)

    async def last_claim(self, key: RequestKey) -> tuple[int, Claim] | None:
        return await self._tape.last_claim(key)

    async def claimed(self) -> list[RequestKey]:
        return [subjects.parse_key(name) for name in await self._js.subject_counts(STREAM_TAPE, subjects.CLAIM_ALL)]

    async def claims(self, key: RequestKey) -> tuple[Claim, ...]:
        return await self._tape.claims(key)

    def send_frame(self, key: RequestKey, body: bytes) -> asyncio.Future[int]:
        return self._frames.send(subjects.frame(key), body)

    async def put_terminal(self, key: RequestKey, body: bytes, *, fence: int) -> int:
        return await self._tape.put_terminal(key, body, fence=fence)

    async def read_tape(self, key: RequestKey, *, after_seq: int = 0) -> Tape:
        return await self._tape.read(key, after_seq)

    async def purge_tape(self, key: RequestKey) -> None:
        await self._tape.purge(key)

    async def tape_fill(self) -> float:
        return await self._tape.fill()

    async def listen_replies(
        self, owner: str, on_reply: Callable[[Reply], None], *, request: str | None = None
    ) -> Subscription:
        def on_packet(packet: Packet) -> None:
            seq = int(packet.header(subjects.HEADER_SEQUENCE) or 0)
            last_seq = int(packet.header(subjects.HEADER_LAST_SEQUENCE) or 0)
            on_reply(Reply(subjects.parse_key(packet.subject), seq, last_seq, packet.data))

        if request is not None:
            return await self._listen(subjects.reply(RequestKey(owner, request)), on_packet)
        return await self._listen(subjects.reply_filter(owner), on_packet)

    async def send_cancel(self, key: RequestKey) -> None:
        self._link.send(subjects.cancel(key), b"")

    async def listen_cancels(self, on_cancel: Callable[[RequestKey], None]) -> Subscription:
        def on_packet(packet: Packet) -> None:
            # Anything else that a server was made to send here, such as an acknowledgement, has a body.
            if not packet.data:
                on_cancel(subjects.parse_key(packet.subject))

        return await self._listen(subjects.CANCEL_ALL, on_packet)

    async def send_gossip(self, model: str, body: bytes) -> None:
        self._link.send(subjects.fair(model), body)

    async def listen_gossip(self, model: str, on_gossip: Callable[[bytes], None]) -> Subscription:
        return await self._listen(subjects.fair(model), lambda packet: on_gossip(packet.data))

    async def forward(self, delivery: Delivery, to: str, offer: Offer) -> bool:
        assert isinstance(delivery, JetStreamDelivery), "it was pulled from another broker"
        return await self._forwards.send(delivery, to, offer)

    async def listen_forwards(self, model: str, epoch: str, on_forward: Callable[[Forwarded], None]) -> Subscription:
        return await self._listen(subjects.forward(model, epoch), self._forwards.handler(on_forward))

    async def count(self, counter: Counter, add: int, *, msg_id: str | None = None) -> int | None:
        return await self._counters.count(counter, add, msg_id)

    async def counted(self, counter: Counter) -> int:
        return await self._counters.value(counter)

    async def counters(self, series: Series, parts: tuple[str | None, ...]) -> dict[Counter, int]:
        return await self._counters.matching(series, parts)

    async def bucket(self, name: str) -> Bucket:
        return JetStreamBucket(self._link, self._js, name)

    def chunks(self, store: str) -> ChunkStore:
        return JetStreamChunks(self._js, store)

    async def close(self) -> None:
        try:
            await self._link.flush()
        except BrokerError as error:
            log.warning("closing without a last flush", reason=str(error))
        self._frames.close()
        await self._link.close()
        if self._ensuring is not None:
            self._ensuring.cancel()
            await asyncio.gather(self._ensuring, return_exceptions=True)

    def _ensure_again(self) -> None:
        # A single server that restarted has forgotten its memory streams, the tape among them.
        if self._ensuring is None or self._ensuring.done():
            self._ensuring = asyncio.create_task(self._ensure())

    async def _ensure(self) -> None:
        try:
            await topology.ensure(self._js, self._settings, CONNECT_DEADLINE_S)
        except InferFluxError as error:
            log.error("cannot set up the streams again", reason=str(error))

    async def _listen(self, subject: str, on_packet: Callable[[Packet], None]) -> Subscription:
        subscription = await self._link.listen(subject, on_packet)
        # Whoever publishes after this call returned must be heard.
        await self._link.flush()
        return subscription


def _by_lane(counts: Mapping[str, int]) -> dict[Lane, int]:
    lanes: dict[Lane, int] = {}
    for subject, count in counts.items():
        with contextlib.suppress(ValueError):  # no lane: `next_prompt` removes it
            lanes[subjects.parse_lane(subject)] = count
    return lanes
