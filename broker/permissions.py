"""What each role may publish and subscribe to on NATS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from . import subjects
from .credentials import ROLE_ADMIN, ROLE_API, ROLE_WORKER, tenant_role
from .subjects import (
    BUCKET_AUDIT,
    BUCKET_BATCHES,
    BUCKET_DEADLETTERS,
    BUCKET_POLICY,
    BUCKET_REGISTRY,
    BUCKET_TENANTS,
    BUCKET_WORKERS,
    BUCKETS,
    OBJECTS_FILES,
    STREAM_LIMITS,
    STREAM_PROMPTS,
    STREAM_TAPE,
    STREAM_USAGE,
    ServiceClass,
    js_api,
)

COUNTERS = (STREAM_LIMITS, STREAM_USAGE)


class Permissions(msgspec.Struct, frozen=True):
    """Subjects that a user may publish to and subscribe to; everything else is refused."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def admin() -> Permissions:
    """Operators and the embedded server's own set-up."""
    return Permissions((">",), (">",))


def api() -> Permissions:
    """Admits requests, follows their tapes, cancels, sweeps, and owns the topology and the control plane."""
    files = subjects.object_stream(OBJECTS_FILES)
    buckets = [subjects.kv_stream(name) for name in BUCKETS]
    all_streams = (STREAM_PROMPTS, STREAM_TAPE, *COUNTERS, *buckets, files)
    return Permissions(
        (
            subjects.BELL_SOURCE,
            subjects.CANCEL_ALL,
            subjects.TAPE_ALL,
            subjects.LIMIT_ALL,
            *(js_api("STREAM", call, name) for name in all_streams for call in ("CREATE", "UPDATE", "INFO")),
            *_prompts_and_tape(),
            *(subject for name in BUCKETS for subject in _read_bucket(name)),
            *(subjects.kv(name, ">") for name in BUCKETS),
            *subjects.object_subjects(OBJECTS_FILES),
            *_read_stream(files),
            js_api("STREAM", "PURGE", files),
            *_read_counters(),
            js_api("CONSUMER", "LIST", STREAM_PROMPTS),
        ),
        (f"{subjects.inbox_prefix(ROLE_API)}.>", subjects.REPLY_ALL),
    )


def worker() -> Permissions:
    """Pulls, claims, writes tapes and its own heartbeat; reads the control plane; publishes no prompt, but forwards
    what it pulled to other workers, and answers them."""
    readable = (BUCKET_REGISTRY, BUCKET_POLICY, BUCKET_TENANTS, BUCKET_WORKERS)
    buckets = [subjects.kv_stream(name) for name in BUCKETS]
    files = subjects.object_stream(OBJECTS_FILES)
    return Permissions(
        (
            subjects.TAPE_ALL,
            subjects.LIMIT_ALL,
            subjects.BUDGET_ALL,
            subjects.USAGE_ALL,
            subjects.FAIR_ALL,
            subjects.FORWARD_ALL,
            f"{subjects.inbox_prefix(ROLE_WORKER)}.>",
            subjects.kv(BUCKET_WORKERS, ">"),
            subjects.kv(BUCKET_DEADLETTERS, ">"),
            subjects.kv(BUCKET_AUDIT, ">"),
            subjects.ACK_PROMPTS,
            js_api("CONSUMER", "CREATE", STREAM_PROMPTS, ">"),
            js_api("CONSUMER", "MSG", "NEXT", STREAM_PROMPTS, "*"),
            *(js_api("STREAM", "INFO", name) for name in (STREAM_PROMPTS, STREAM_TAPE, *COUNTERS, *buckets, files)),
            *_read_counters(),
            *_prompts_and_tape(),
            *(subject for name in readable for subject in _read_bucket(name)),
        ),
        (
            f"{subjects.inbox_prefix(ROLE_WORKER)}.>",
            subjects.BELL_DESTINATION,
            subjects.CANCEL_ALL,
            subjects.FAIR_ALL,
            subjects.FORWARD_ALL,
        ),
    )


def publisher(tenant: str, classes: Iterable[str]) -> Permissions:
    """A tenant that speaks NATS itself: its own lanes, its own cancels, its own replies. It needs an account of its
    own too (`accounts`): permissions do not cover reply subjects."""
    owner = subjects.tenant_owner(tenant)
    return Permissions(
        (
            *(subjects.infer_of(tenant, each) for each in classes),
            subjects.cancel_filter(owner),
            *(_own_batches(tenant) if ServiceClass.BATCH in classes else ()),
        ),
        (f"{subjects.inbox_prefix(tenant_role(tenant))}.>", subjects.reply_filter(owner)),
    )


def roles(publishers: Mapping[str, Iterable[str]]) -> dict[str, Permissions]:
    """Every role of a fleet; `publishers` are tenants and the classes they may use."""
    return {
        ROLE_ADMIN: admin(),
        ROLE_API: api(),
        ROLE_WORKER: worker(),
        **{tenant_role(tenant): publisher(tenant, classes) for tenant, classes in publishers.items()},
    }


def _own_batches(tenant: str) -> tuple[str, ...]:
    """Store the chunks of a file, submit it, and read what became of it, each by the subject it is stored under."""
    chunks = subjects.object_chunks_of(OBJECTS_FILES, tenant)
    batches = subjects.kv(BUCKET_BATCHES, subjects.batches_of(tenant))
    return (
        chunks,
        subjects.kv(BUCKET_BATCHES, subjects.submissions_of(tenant)),
        js_api("DIRECT", "GET", subjects.object_stream(OBJECTS_FILES), chunks),
        js_api("DIRECT", "GET", subjects.kv_stream(BUCKET_BATCHES), batches),
    )


def _prompts_and_tape() -> tuple[str, ...]:
    return (
        js_api("STREAM", "MSG", "GET", STREAM_PROMPTS),
        js_api("STREAM", "MSG", "DELETE", STREAM_PROMPTS),
        js_api("STREAM", "MSG", "GET", STREAM_TAPE),
        js_api("DIRECT", "GET", STREAM_TAPE),
        js_api("STREAM", "PURGE", STREAM_TAPE),
    )


def _read_counters() -> tuple[str, ...]:
    return tuple(js_api(*call, name) for name in COUNTERS for call in (("STREAM", "MSG", "GET"), ("DIRECT", "GET")))


def _read_bucket(name: str) -> tuple[str, ...]:
    return _read_stream(subjects.kv_stream(name))


def _read_stream(stream: str) -> tuple[str, ...]:
    return (
        js_api("STREAM", "MSG", "GET", stream),
        js_api("DIRECT", "GET", stream),
        js_api("DIRECT", "GET", stream, ">"),
        js_api("CONSUMER", "CREATE", stream, ">"),
        js_api("CONSUMER", "INFO", stream, "*"),
        js_api("CONSUMER", "DELETE", stream, "*"),
    )
