"""Streams, KV buckets and the object store: what they are, and making the server's agree with the settings."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

import msgspec

from inferflux.config.logs import get_logger
from inferflux.config.settings import Settings

from . import subjects
from .errors import BrokerUnavailable, ConfigError
from .jetstream_api import ERR_NO_PEERS, ERR_STREAM_EXISTS, ApiError, JetStreamApi

NANOS = 1_000_000_000
DUPLICATE_WINDOW_S = 120
LIMITS_KEPT = 16
"""Values of one counter: whoever counts a second time, for its answer was lost, is told the first answer by them."""
LIMITS_BYTES = 32 * 1024 * 1024
"""Beside the tape in memory; where it does not suffice, the oldest values go, most of which are outdated."""
USAGE_AGE_S = 400 * 24 * 3600
COUNT_WINDOW_S = 600
MARKER_TTL_S = 10
POLL_S = 0.05
UNUSED_US = 1_000_000
# The server cannot change a stream's max_consumers later, so lanes are capped by `queue.max_lanes` when a
# consumer is made, and this is only far enough above it.
MAX_CONSUMERS = 10_000

log = get_logger("broker")


class Republish(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a stream announces what it has stored."""

    src: str
    dest: str
    headers_only: bool = False


class Retention(msgspec.Struct, frozen=True):
    """How much a bucket keeps before its oldest entries go."""

    max_entries: int
    max_bytes: int
    max_age_s: float


AUDIT_HEADS = Retention(10_000, 8 * 1024 * 1024, 400 * 24 * 3600.0)
"""One small entry for each process that ever wrote an audit log: its last line's number and hash."""


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stream in the server's own terms; durations are nanoseconds. What is left out keeps the server's default, but
    rollups are always spelled out: streams that tenants publish to once allowed them."""

    name: str
    subjects: tuple[str, ...]
    storage: Literal["file", "memory"]
    num_replicas: int
    max_consumers: int
    allow_rollup_hdrs: bool = msgspec.field(default_factory=bool)
    retention: Literal["limits", "workqueue"] = "limits"
    discard: Literal["old", "new"] = "old"
    discard_new_per_subject: bool = False
    max_msgs_per_subject: int = 0
    max_msgs: int = 0
    max_bytes: int = 0
    max_age: int = 0
    duplicate_window: int = 0
    republish: Republish | None = None
    allow_direct: bool = False
    allow_msg_ttl: bool = False
    allow_msg_counter: bool = False
    subject_delete_marker_ttl: int = 0


def streams(settings: Settings) -> tuple[StreamConfig, ...]:
    """Every stream that InferFlux needs."""
    replicas = settings.broker.replicas
    return (
        StreamConfig(
            name=subjects.STREAM_PROMPTS,
            subjects=(subjects.INFER_ALL,),
            storage="file",
            num_replicas=replicas,
            max_consumers=MAX_CONSUMERS,
            retention="workqueue",
            discard="new",
            discard_new_per_subject=True,
            max_msgs_per_subject=settings.queue.max_msgs_per_subject,
            max_bytes=settings.queue.max_bytes,
            duplicate_window=DUPLICATE_WINDOW_S * NANOS,
            republish=Republish(subjects.BELL_SOURCE, subjects.BELL_DESTINATION, headers_only=True),
        ),
        StreamConfig(
            name=subjects.STREAM_TAPE,
            subjects=(subjects.TAPE_ALL,),
            storage="memory",
            num_replicas=replicas,
            max_consumers=MAX_CONSUMERS,
            discard="new",
            max_bytes=settings.tape.max_bytes,
            max_age=int(settings.tape.max_age_s * NANOS),
            duplicate_window=int(min(DUPLICATE_WINDOW_S, settings.tape.max_age_s) * NANOS),
            republish=Republish(subjects.REPLY_SOURCE, subjects.REPLY_DESTINATION),
            allow_direct=True,
        ),
        StreamConfig(
            name=subjects.STREAM_LIMITS,
            subjects=(subjects.LIMIT_ALL,),
            # A window lasts a minute: it is not worth a disk's time, and whoever restarts every server starts it anew.
            storage="memory",
            num_replicas=replicas,
            max_consumers=MAX_CONSUMERS,
            max_bytes=LIMITS_BYTES,
            max_msgs_per_subject=LIMITS_KEPT,
            max_age=_count_window(settings),
            duplicate_window=_count_window(settings),
            allow_msg_counter=True,
            allow_direct=True,
        ),
        StreamConfig(
            name=subjects.STREAM_USAGE,
            subjects=(subjects.BUDGET_ALL, subjects.USAGE_ALL),
            storage="file",
            num_replicas=replicas,
            max_consumers=MAX_CONSUMERS,
            max_msgs_per_subject=1,
            max_age=USAGE_AGE_S * NANOS,
            duplicate_window=_count_window(settings),
            allow_msg_counter=True,
            allow_direct=True,
        ),
        *(_bucket(name, settings) for name in subjects.BUCKETS),
        StreamConfig(
            name=subjects.object_stream(subjects.OBJECTS_FILES),
            subjects=subjects.object_subjects(subjects.OBJECTS_FILES),
            storage="file",
            num_replicas=replicas,
            max_consumers=MAX_CONSUMERS,
            discard="new",
            max_msgs_per_subject=1,
            allow_direct=True,
        ),
    )


async def ensure(js: JetStreamApi, settings: Settings, deadline_s: float) -> None:
    """Create what is missing and update what the settings changed; safe to run from many processes at once.

    Raises ConfigError when the server cannot make a stream what the settings ask for, BrokerUnavailable when
    JetStream is not there in time.
    """
    end = time.monotonic() + deadline_s
    for wanted in streams(settings):
        while True:
            try:
                await _ensure_stream(js, wanted)
                break
            except ApiError as error:
                # A cluster that has just started may not have found all its servers yet.
                if error.err_code != ERR_NO_PEERS or time.monotonic() > end:
                    raise ConfigError(_explain(wanted, error)) from error
            except BrokerUnavailable as error:
                if time.monotonic() > end:
                    raise BrokerUnavailable(f"cannot set up stream {wanted.name}: {error}") from error
            await asyncio.sleep(POLL_S)


async def wait(js: JetStreamApi, settings: Settings, deadline_s: float) -> None:
    """Return once every stream is there. Raises BrokerUnavailable naming the first that is not."""
    end = time.monotonic() + deadline_s
    for wanted in streams(settings):
        while True:
            try:
                if await js.stream_info(wanted.name) is not None:
                    break
                reason = "start `inferctl serve` or `inferctl api`, which create it"
            except BrokerUnavailable as error:
                reason = str(error)
            if time.monotonic() > end:
                raise BrokerUnavailable(f"stream {wanted.name} is missing: {reason}")
            await asyncio.sleep(POLL_S)


async def _ensure_stream(js: JetStreamApi, wanted: StreamConfig) -> None:
    body: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(wanted))
    info = await js.stream_info(wanted.name)
    if info is None:
        try:
            await js.call("STREAM", "CREATE", wanted.name, body=body | _first_seq(wanted))
            return
        except ApiError as error:
            if error.err_code != ERR_STREAM_EXISTS:
                raise
        info = await js.call("STREAM", "INFO", wanted.name)
    current = info["config"]
    changed = {name: value for name, value in body.items() if current.get(name) != value}
    if changed:
        await js.call("STREAM", "UPDATE", wanted.name, body={**current, **body})
        log.info("updated stream", stream=wanted.name, fields=",".join(sorted(changed)))
    await _advance(js, wanted, info)


async def _advance(js: JetStreamApi, wanted: StreamConfig, info: dict[str, Any]) -> None:
    # Servers of a cluster that all restarted begin the memory stream where it once began.
    last_seq = int(info["state"]["last_seq"])
    now = _first_seq(wanted).get("first_seq", 0)
    unused = int(info["state"]["messages"]) == 0 and last_seq + 1 == int(info["config"].get("first_seq", 0))
    if unused and now - last_seq > UNUSED_US:
        await js.call("STREAM", "PURGE", wanted.name, body={"seq": now})


def _first_seq(wanted: StreamConfig) -> dict[str, int]:
    # A tape made anew must not hand out old sequences again: they fence claims and are clients' resume points.
    return {"first_seq": int(time.time() * 1_000_000)} if wanted.name == subjects.STREAM_TAPE else {}


def retention(name: str, settings: Settings) -> Retention | None:
    """The bounds of a bucket that gives up its oldest entries; None for one that keeps everything."""
    if name == subjects.BUCKET_AUDIT:
        return AUDIT_HEADS
    if name != subjects.BUCKET_DEADLETTERS:
        return None
    queue = settings.queue
    return Retention(queue.dead_max_letters, queue.dead_max_bytes, queue.dead_max_age_s)


def _count_window(settings: Settings) -> int:
    # A redelivery settles what the attempt before it has settled: both must fall into one window.
    return int(max(COUNT_WINDOW_S, 4 * settings.queue.lease_s) * NANOS)


def _bucket(name: str, settings: Settings) -> StreamConfig:
    expires = name in subjects.EXPIRING_BUCKETS
    bounds = retention(name, settings)
    return StreamConfig(
        name=subjects.kv_stream(name),
        subjects=(subjects.kv(name, ">"),),
        storage="file",
        num_replicas=settings.broker.replicas,
        max_consumers=MAX_CONSUMERS,
        discard="old" if bounds else "new",
        max_msgs_per_subject=1,
        max_msgs=bounds.max_entries if bounds else 0,
        max_bytes=bounds.max_bytes if bounds else 0,
        max_age=int(bounds.max_age_s * NANOS) if bounds else 0,
        duplicate_window=int(min(DUPLICATE_WINDOW_S, bounds.max_age_s if bounds else DUPLICATE_WINDOW_S) * NANOS),
        allow_direct=True,
        # Tenants publish to this bucket, and a rollup would let one remove what is not its own.
        allow_rollup_hdrs=name != subjects.BUCKET_BATCHES,
        allow_msg_ttl=expires,
        subject_delete_marker_ttl=MARKER_TTL_S * NANOS if expires else 0,
    )


def _explain(wanted: StreamConfig, error: ApiError) -> str:
    text = error.description.lower()
    if "replicas" in text or "peers" in text:
        fix = f"broker.replicas is {wanted.num_replicas}, which needs as many NATS servers in one cluster"
    elif "memory" in text or "storage" in text or "resources" in text:
        bound = "tape.max_bytes" if wanted.storage == "memory" else "queue.max_bytes and queue.dead_max_bytes"
        fix = (
            f"the server sets a stream's bound aside: give it more JetStream {wanted.storage} storage, or lower {bound}"
        )
    else:
        fix = (
            f"a stream {wanted.name} with other properties is there; stop InferFlux, delete that stream (its messages "
            "are lost) and start again, or restore the old settings"
        )
    return f"stream {wanted.name}: {error.description}: {fix}"
