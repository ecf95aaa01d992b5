"""Every subject, stream, bucket, header and inbox prefix, and the only code that spells or parses one.

Model ids, tenants and request ids become single subject tokens: `A-Z a-z 0-9 _ -` stay, every other byte of
the UTF-8 text becomes `=XX` (upper-case hex), so `org/model:v1.5` is `org=2Fmodel=3Av1=2E5`. Tokens are also
valid consumer names and KV keys.
"""

from __future__ import annotations

import base64
import hashlib
import re
from enum import StrEnum

import msgspec

ROOT = "inferflux"

STREAM_PROMPTS = "PROMPTS"
STREAM_TAPE = "TAPE"
STREAM_LIMITS = "LIMITS"
STREAM_USAGE = "USAGE"

BUCKET_REGISTRY = "registry"
BUCKET_POLICY = "policy"
BUCKET_TENANTS = "tenants"
BUCKET_WORKERS = "workers"
BUCKET_IDEMPOTENCY = "idempotency"
BUCKET_BATCHES = "batches"
BUCKET_PRESENCE = "presence"
BUCKET_DEADLETTERS = "deadletters"
BUCKET_AUDIT = "audit"
BUCKETS = (
    BUCKET_REGISTRY,
    BUCKET_POLICY,
    BUCKET_TENANTS,
    BUCKET_WORKERS,
    BUCKET_IDEMPOTENCY,
    BUCKET_BATCHES,
    BUCKET_PRESENCE,
    BUCKET_DEADLETTERS,
    BUCKET_AUDIT,
)
EXPIRING_BUCKETS = frozenset({BUCKET_WORKERS, BUCKET_IDEMPOTENCY, BUCKET_PRESENCE})
KEY_FAIRNESS = "fairness"
KEY_LIMITS = "limits"
KEY_GUARDRAILS = "guardrails"
KEY_MODELS = "models"
KEY_CACHE = "cache"
KEY_VAULT = "vault"
KEY_MANIFEST = "manifest"
KEYS_SEAL = (KEY_VAULT, KEY_MANIFEST)
KEYS_TENANT = "tenant."
KEYS_API_KEY = "key."
KEY_MODELS = "models"
KEY_CACHE = "cache"
OBJECTS_FILES = "files"
OBJECT_STORES = (OBJECTS_FILES,)
BATCH = "batch"
SUBMISSION = "submit"

HEADER_MSG_ID = "Nats-Msg-Id"
HEADER_TTL = "Nats-TTL"
HEADER_EXPECTED_SUBJECT_SEQ = "Nats-Expected-Last-Subject-Sequence"
HEADER_EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
HEADER_SEQUENCE = "Nats-Sequence"
HEADER_LAST_SEQUENCE = "Nats-Last-Sequence"
HEADER_LAST_CONSUMER = "Nats-Last-Consumer"
HEADER_MARKER_REASON = "Nats-Marker-Reason"
HEADER_KV_OPERATION = "KV-Operation"
MARKER_HEADERS = (HEADER_KV_OPERATION, HEADER_MARKER_REASON)
HEADER_INCREMENT = "Nats-Incr"
HEADER_SUBJECT = "Nats-Subject"
HEADER_STAMP = "Inferflux-Stamp"
HEADER_PREFIX = "Inferflux-Prefix"
HEADER_TRACEPARENT = "traceparent"

INFER_ALL = f"{ROOT}.infer.*.*.*"
TAPE_ALL = f"{ROOT}.tape.>"
HEAD_ALL = f"{ROOT}.tape.*.*.head"
CLAIM_ALL = f"{ROOT}.tape.*.*.claim"
LIMIT_ALL = f"{ROOT}.limit.*.*.*"
BUDGET_ALL = f"{ROOT}.budget.*.*"
USAGE_ALL = f"{ROOT}.usage.*.*.*.*"
CANCEL_ALL = f"{ROOT}.cancel.*.*"
BELL_SOURCE = f"{ROOT}.infer.>"
BELL_DESTINATION = f"{ROOT}.bell.>"
REPLY_SOURCE = f"{ROOT}.tape.*.*.frame"
REPLY_DESTINATION = f"{ROOT}.reply.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}"

OWNER_API = "a-"
OWNER_TENANT = "t-"

FAIR_ALL = f"{ROOT}.fair.*"
FORWARD_ALL = f"{ROOT}.forward.*.*"
REPLY_ALL = f"{ROOT}.reply.*.*"
ACK_PROMPTS = f"$JS.ACK.{STREAM_PROMPTS}.>"

MAX_TOKEN = 200
# The server keeps each consumer in a directory of its name.
MAX_CONSUMER = 200
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPE = re.compile(r"=([0-9A-F]{2})")
_ENCODED = tuple(chr(byte) if _PLAIN.fullmatch(chr(byte)) else f"={byte:02X}" for byte in range(256))


class ServiceClass(StrEnum):
    """Service classes, highest first; named after the tiers that OpenAI clients send."""

    PRIORITY = "priority"
    DEFAULT = "default"
    BATCH = "batch"


class Lane(msgspec.Struct, frozen=True, order=True):
    """Where a prompt waits: one subject and one consumer for each (model, class, tenant)."""

    model: str
    service_class: ServiceClass
    tenant: str


class Series(StrEnum):
    """What counters count; each series has as many parts as `_NUM_PARTS` says."""

    LIMIT = "limit"
    BUDGET = "budget"
    USAGE = "usage"


_NUM_PARTS = {Series.LIMIT: 3, Series.BUDGET: 2, Series.USAGE: 4}


class Counter(msgspec.Struct, frozen=True, order=True):
    """Names one counter: `(kind, id, window)` of a limit, `(tenant, month)` of a budget, `(tenant, key, model, day)` of
    usage; decoded."""

    series: Series
    parts: tuple[str, ...]


class RequestKey(msgspec.Struct, frozen=True, order=True):
    """Names one request on the tape: its owner (`a-<replica>` or `t-<tenant>`) and its id, both decoded."""

    owner: str
    request: str


def encode_token(text: str) -> str:
    """One subject token for any text. Raises ValueError when it is empty or over 200 bytes encoded."""
    return _encode(text, MAX_TOKEN)


def owner_token(owner: str) -> str:
    """An owner as a token: its mark, and a tenant as long as any may be."""
    return _encode(owner, MAX_TOKEN + len(OWNER_TENANT))


def decode_token(token: str) -> str:
    """The text that `encode_token` made this token of. Raises ValueError for what it cannot have made."""
    if _PLAIN.fullmatch(token):
        return token
    text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), token).encode("latin-1").decode()
    if _encode(text, MAX_TOKEN + len(OWNER_TENANT)) != token:
        raise ValueError(f"{token!r} is not a canonical subject token")
    return text


def api_owner(replica: str) -> str:
    """Owner of the requests that one API replica made."""
    return OWNER_API + replica


def tenant_owner(tenant: str) -> str:
    """Owner of the requests that a tenant published itself."""
    return OWNER_TENANT + tenant


def infer(lane: Lane) -> str:
    return f"{ROOT}.infer.{_lane_tokens(lane)}"


def infer_filter(model: str) -> str:
    """Every lane of one model."""
    return f"{ROOT}.infer.{encode_token(model)}.*.*"


def infer_of(tenant: str, service_class: str) -> str:
    """Every lane of one tenant and class, whatever the model."""
    return f"{ROOT}.infer.*.{service_class}.{encode_token(tenant)}"


def bell_filter(model: str) -> str:
    return f"{ROOT}.bell.{encode_token(model)}.*.*"


def consumer(lane: Lane) -> str:
    """Durable consumer name of a lane: its tokens joined by `~`, which no token contains; a digest ends a long one."""
    name = _lane_tokens(lane).replace(".", "~")
    if len(name) <= MAX_CONSUMER:
        return name
    return f"{name[: MAX_CONSUMER - 65]}~{hashlib.sha256(name.encode()).hexdigest()}"


def parse_lane(subject: str) -> Lane:
    """The lane that an infer or bell subject names. Raises ValueError for any other subject."""
    parts = subject.split(".")
    if len(parts) != 5 or parts[0] != ROOT or parts[1] not in ("infer", "bell"):
        raise ValueError(f"{subject!r} names no lane")
    return Lane(decode_token(parts[2]), ServiceClass(parts[3]), decode_token(parts[4]))


def tenant_key(tenant: str) -> str:
    """The KV key of what operators say of a tenant."""
    return KEYS_TENANT + encode_token(tenant)


def api_key_key(key_id: str) -> str:
    """The KV key of an API key's record."""
    return KEYS_API_KEY + encode_token(key_id)


def claim(key: RequestKey) -> str:
    return f"{ROOT}.tape.{_key_tokens(key)}.claim"


def frame(key: RequestKey) -> str:
    return f"{ROOT}.tape.{_key_tokens(key)}.frame"


def key_id(key: RequestKey) -> str:
    """A request's name for people, URLs and KV: owner and id, unlike the id alone unique over all owners."""
    return _key_tokens(key)


def parse_key_id(text: str) -> RequestKey:
    """The request that `key_id` named. Raises ValueError for any other text."""
    owner, dot, request = text.partition(".")
    if not dot or "." in request:
        raise ValueError(f"{text[:100]!r} names no request: write it as OWNER.REQUEST")
    return RequestKey(decode_token(owner), decode_token(request))


def head(key: RequestKey) -> str:
    return f"{ROOT}.tape.{_key_tokens(key)}.head"


def tape_filter(key: RequestKey) -> str:
    """Everything that the tape holds of one request."""
    return f"{ROOT}.tape.{_key_tokens(key)}.*"


def reply(key: RequestKey) -> str:
    return f"{ROOT}.reply.{_key_tokens(key)}"


def reply_filter(owner: str) -> str:
    return f"{ROOT}.reply.{owner_token(owner)}.*"


def cancel(key: RequestKey) -> str:
    return f"{ROOT}.cancel.{_key_tokens(key)}"


def cancel_filter(owner: str) -> str:
    return f"{ROOT}.cancel.{owner_token(owner)}.*"


def parse_key(subject: str) -> RequestKey:
    """The request that a tape, reply or cancel subject names. Raises ValueError for any other subject."""
    parts = subject.split(".")
    if len(parts) < 4 or parts[0] != ROOT or parts[1] not in ("tape", "reply", "cancel"):
        raise ValueError(f"{subject!r} names no request")
    return RequestKey(decode_token(parts[2]), decode_token(parts[3]))


def fair(model: str) -> str:
    return f"{ROOT}.fair.{encode_token(model)}"


def forward(model: str, epoch: str) -> str:
    """Where one worker process takes prompts of a model that others pulled."""
    return f"{ROOT}.forward.{encode_token(model)}.{encode_token(epoch)}"


def counter(of: Counter) -> str:
    return counter_filter(of.series, of.parts)


def counter_filter(series: Series, parts: tuple[str | None, ...]) -> str:
    """Every counter of a series whose parts are these; None stands for any."""
    assert len(parts) == _NUM_PARTS[series], f"a counter of {series} has other parts than {parts}"
    tokens = ("*" if part is None else encode_token(part) for part in parts)
    return ".".join((ROOT, series.value, *tokens))


def parse_counter(subject: str) -> Counter:
    """The counter that a subject names. Raises ValueError for any other subject."""
    root, series, *parts = subject.split(".")
    if root != ROOT or series not in set(Series) or len(parts) != _NUM_PARTS[Series(series)]:
        raise ValueError(f"{subject!r} names no counter")
    return Counter(Series(series), tuple(decode_token(part) for part in parts))


def counter_stream(series: Series) -> str:
    """Where a series is kept."""
    return STREAM_LIMITS if series is Series.LIMIT else STREAM_USAGE


def inbox_prefix(role: str) -> str:
    """Each role has its own inbox prefix, so that permissions keep one from reading another's answers."""
    return f"_INBOX_{encode_token(role)}"


def js_api(*tokens: str) -> str:
    """The subject of one JetStream API call, such as `js_api("STREAM", "INFO", STREAM_TAPE)`."""
    return ".".join(("$JS.API", *tokens))


def kv_stream(bucket: str) -> str:
    """The stream behind a KV bucket."""
    return f"KV_{bucket}"


def kv(bucket: str, key: str) -> str:
    """Where an entry is put; the key `>` names all of them."""
    return f"$KV.{bucket}.{key}"


def batch_key(tenant: str, ident: str) -> str:
    """The entry of one batch in the bucket `batches`."""
    return f"{BATCH}.{encode_token(tenant)}.{encode_token(ident)}"


def submission_key(tenant: str, ident: str) -> str:
    """Where a tenant puts a batch that it wants run."""
    return f"{SUBMISSION}.{encode_token(tenant)}.{encode_token(ident)}"


def batches_of(tenant: str) -> str:
    """The entries of all batches of a tenant."""
    return f"{BATCH}.{encode_token(tenant)}.*"


def submissions_of(tenant: str) -> str:
    return f"{SUBMISSION}.{encode_token(tenant)}.*"


def parse_batch_key(key: str) -> tuple[str, str, str]:
    """Whether an entry is a `BATCH` or a `SUBMISSION`, its tenant and its id. Raises ValueError for any other key."""
    parts = key.split(".")
    if len(parts) != 3 or parts[0] not in (BATCH, SUBMISSION):
        raise ValueError(f"{key[:100]!r} names no batch")
    return parts[0], decode_token(parts[1]), decode_token(parts[2])


def object_stream(store: str) -> str:
    """The stream behind an object store."""
    return f"OBJ_{store}"


def object_subjects(store: str) -> tuple[str, str]:
    """Where an object store keeps its chunks and what describes them."""
    return f"$O.{store}.C.>", f"$O.{store}.M.>"


def object_name(tenant: str, ident: str) -> str:
    """An object of a tenant: it names its chunks too, so that permissions can hold a tenant to its own."""
    return f"{encode_token(tenant)}.{encode_token(ident)}"


def journal_name(token: str) -> str:
    """An object that belongs to no tenant, since no tenant is spelled so: permissions of tenants never reach it."""
    return f"~journal.{token}"


def parse_object_name(name: str) -> tuple[str, str]:
    """The tenant and the id that `object_name` named. Raises ValueError for any other text."""
    tenant, dot, ident = name.partition(".")
    if not dot:
        raise ValueError(f"{name[:100]!r} names no object")
    return decode_token(tenant), decode_token(ident)


def object_chunk(store: str, name: str, number: int) -> str:
    """Each chunk has a subject of its own, so that it can be written by compare-and-set and read without a consumer."""
    return f"$O.{store}.C.{name}.{number}"


def object_chunks(store: str, name: str) -> str:
    """Every chunk of one object."""
    return f"$O.{store}.C.{name}.*"


def object_chunks_of(store: str, tenant: str) -> str:
    """Every chunk of one tenant."""
    return f"$O.{store}.C.{encode_token(tenant)}.*.*"


def object_nuid(name: str) -> str:
    """What stands for an object's chunks in its description: other clients append it to where chunks are kept."""
    return f"{name}.*"


def parse_object_chunk(subject: str) -> str:
    """The object that a chunk belongs to."""
    return ".".join(subject.split(".")[3:-1])


def object_about(store: str, name: str) -> str:
    """Where an object is described."""
    return f"$O.{store}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def parse_object_about(subject: str) -> str:
    """The object that a description is of. Raises ValueError for what `object_about` cannot have made."""
    return base64.urlsafe_b64decode(subject.rpartition(".")[2]).decode()


def _lane_tokens(lane: Lane) -> str:
    return f"{encode_token(lane.model)}.{lane.service_class}.{encode_token(lane.tenant)}"


def _key_tokens(key: RequestKey) -> str:
    return f"{owner_token(key.owner)}.{encode_token(key.request)}"


def _encode(text: str, limit: int) -> str:
    if not text:
        raise ValueError("a subject token cannot be empty")
    token = text
    if not _PLAIN.fullmatch(text):
        token = "".join(_ENCODED[byte] for byte in text.encode())
    if len(token) > limit:
        raise ValueError(f"{text[:40]!r} is too long for a subject: {len(token)} bytes, at most {limit}")
    return token
