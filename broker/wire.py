"""Every message that crosses a process, as JSON.

Structs are frozen, unknown fields are ignored, and a new field has a default, so that any NATS client in any
language can talk to any version of the fleet. Field names follow the OpenAI API where it has the concept.
Times are Unix seconds; durations end in `_s`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from inferflux.config.settings import Scope, ServiceClassName

from .errors import Code

FinishReason: TypeAlias = Literal["stop", "length", "content_filter"]
"""Why a choice ended; `stop` is an end-of-sequence token or a stop string."""

Hardware: TypeAlias = Literal["cpu", "gpu"]


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every message."""


class Message(Wire, frozen=True, kw_only=True):
    """One chat message. Only text content reaches a model; the API flattens text parts into one string.

    `tool_call_id` says which call a message of role `tool` answers, for templates that show it.
    """

    role: str
    content: str = ""
    name: str | None = None
    tool_call_id: str | None = None


class Prompt(Wire, frozen=True, kw_only=True, tag_field="type"):
    """What the queue holds: fields common to every kind of request.

    `id` is chosen by the publisher, unique for its owner, and may be encoded as a subject token.
    `deadline` is the latest time at which a worker may start; after it the answer is `queue_timeout`. `key` names the
    API key that the request came with; it counts in stamped messages only.
    """

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    created: float = 0.0
    deadline: float | None = None
    key: Annotated[str, Meta(max_length=2048)] | None = None


class Generation(Prompt, frozen=True, kw_only=True):
    """Fields shared by completions and chats; ranges are those of the OpenAI API.

    `seed` makes sampling reproducible; without one it is derived from the request, so that a second attempt
    samples what the first would have. `logprobs` is the number of alternatives to report for each token, 0 for
    the chosen token alone, None for no log probabilities.
    """

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(max_length=16)] = ()
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=128)] = 1
    logit_bias: dict[Annotated[str, Meta(max_length=10)], Annotated[float, Meta(ge=-100, le=100)]] = {}
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    ignore_eos: bool = False


class CompletionPrompt(Generation, frozen=True, kw_only=True, tag="completion"):
    """Text, token ids, or several of either; choice `i * n + j` is sample `j` of prompt `i`."""

    prompt: str | tuple[str | int | tuple[int, ...], ...]
    echo: bool = False


class ChatPrompt(Generation, frozen=True, kw_only=True, tag="chat"):
    """A conversation, rendered by the worker with the model's own chat template."""

    messages: tuple[Message, ...]


class EmbeddingPrompt(Prompt, frozen=True, kw_only=True, tag="embedding"):
    """Texts or token ids to embed; item `i` of the answer is a frame of choice `i`."""

    input: str | tuple[str | int | tuple[int, ...], ...]


AnyPrompt: TypeAlias = CompletionPrompt | ChatPrompt | EmbeddingPrompt


class Claim(Wire, frozen=True, kw_only=True):
    """One attempt at a request; the stream sequence of this message is the attempt's number.

    `num_attempts` counts the claims so far that ran and were not handed back, this one included. `prompt` is the
    claimed prompt's sequence in the stream: another prompt under the same id joins the first instead of running.
    """

    worker: str
    state: Literal["running", "released", "cancelled"] = "running"
    prompt: int = 0
    num_attempts: int = 1
    at: float = 0.0


class Head(Wire, frozen=True, kw_only=True):
    """What an API replica notes on the tape of a request that it has accepted: all that another replica needs to go
    on answering it. `prompt` is the prompt's sequence in the stream, `slot` the record of its idempotency key."""

    kind: Literal["chat", "completion", "embedding"]
    model: str
    service_class: str
    tenant: str
    created: float
    prompt: int
    include_usage: bool = False
    slot: str | None = None


class TokenLogprob(Wire, frozen=True, kw_only=True):
    """A token with its log probability (natural logarithm) and its exact bytes."""

    token: str
    logprob: float
    bytes: tuple[int, ...] = ()
    top: tuple[TokenLogprob, ...] = ()


class Usage(Wire, frozen=True, kw_only=True):
    """Token counts of one request; `cached_tokens` are prompt tokens that the prefix cache held."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Failure(Wire, frozen=True, kw_only=True):
    """Why a request ended without an answer. `code` is one of `errors.Code`; unknown codes are server errors."""

    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


class Frame(Wire, frozen=True, kw_only=True):
    """A piece of one choice, or the one terminal frame of a request (`usage` or `error` is set).

    `index` is the position of the first of `num_tokens` tokens within the choice. A frame holds several tokens when
    they came faster than they could be sent; `pieces` then splits `text` by token. `hash` is the running keyed hash
    of the choice's token ids after this frame; `prev`, on the first frame of an attempt, is the hash that it
    continues from. `sealed` holds the token ids for workers alone. `model` and `backend` come with the first frame.
    """

    id: str
    attempt: int
    choice: int = 0
    index: int = 0
    num_tokens: int = 0
    text: str = ""
    pieces: tuple[str, ...] | None = None
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    embedding: tuple[float, ...] | None = None
    hash: str | None = None
    prev: str | None = None
    sealed: str | None = None
    model: str | None = None
    backend: str | None = None
    usage: Usage | None = None
    error: Failure | None = None

    @property
    def terminal(self) -> bool:
        """Whether this is the frame that ends the request."""
        return self.usage is not None or self.error is not None


class _End(Wire, frozen=True, kw_only=True):
    usage: Any = None
    error: Any = None


class ModelBeat(Wire, frozen=True, kw_only=True):
    """One model on one worker, as of this heartbeat.

    `progress` is the share of it that is loaded; below 1 in a model that is `ready`, another engine is about to take
    over. `digest` names the registry entry that it was loaded from, `reason` says why it, or its next engine, failed.
    `warm` are the ids of the prefixes that were computed for operators.
    """

    id: str
    backend: str
    state: Literal["loading", "ready", "unloading", "failed"] = "ready"
    reason: str | None = None
    progress: float = 1.0
    digest: str = ""
    context_length: int = 0
    embeddings: bool = False
    num_slots: int = 0
    num_free_slots: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_pages: int = 0
    num_pages_used: int = 0
    num_pages_cached: int = 0
    tokens_per_s: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    warm: tuple[str, ...] = ()
    hardware: Hardware = "cpu"


class WorkerBeat(Wire, frozen=True, kw_only=True):
    """A worker's heartbeat: the value of its expiring entry in the `workers` bucket."""

    worker: str
    epoch: str
    host: str
    pid: int
    started: float
    at: float
    version: str = ""
    draining: bool = False
    rss_bytes: int = 0
    hardware: Hardware = "cpu"
    model_bytes: int = 0
    kv_bytes: int = 0
    num_steps: int = 0
    models: tuple[ModelBeat, ...] = ()


class ServedTotal(Wire, frozen=True, kw_only=True):
    """Weighted tokens one worker epoch has served in a generation for a tenant of a model and class: it only grows.

    `virtual` is the same service divided by the tenant's weight at the time it was served, so that a change of
    weight moves no counter that stands; both are merged by maximum.
    """

    service_class: str
    tenant: str
    total: float
    virtual: float = 0.0


class Lift(Wire, frozen=True, kw_only=True):
    """How far lifts have raised a tenant's counter in a class above its virtual service; merged by maximum."""

    tenant: str
    level: float
    service_class: str = "default"


class LaneRunning(Wire, frozen=True, kw_only=True):
    """How many prompts of a lane a worker holds."""

    service_class: str
    tenant: str
    num_running: int


class EpochTotals(Wire, frozen=True, kw_only=True):
    """A worker epoch's totals of one generation, passed on for those that never heard them."""

    worker: str
    epoch: str
    generation: int = 0
    totals: tuple[ServedTotal, ...] = ()


class Gossip(Wire, frozen=True, kw_only=True):
    """What workers of a model tell each other so that they pick in one fair order. Losing one loses nothing.

    `at` grows with every message of an epoch. `totals` are the sender's own of this `generation`, those that changed
    and a few others; `chapters` are its own of earlier ones and those of epochs that are gone, `base` is what everybody
    served in generations that are not kept apart any more; without `num_slots` the sender takes no forwarded prompts;
    `running` is all it holds; `prefixes` are digests of prompt beginnings that its cache should hold; `recent` is
    what it served to each class in the last share window. `asks`, when set, is since when the sender has been asking
    everybody for all they know; `num_owed` counts answers not sent yet.
    """

    worker: str
    epoch: str
    model: str
    at: float
    num_free_slots: int = 0
    num_slots: int = 0
    hardware: Literal["cpu", "gpu"] = "cpu"
    totals: tuple[ServedTotal, ...] = ()
    lifts: tuple[Lift, ...] = ()
    generation: int = 0
    chapters: tuple[EpochTotals, ...] = ()
    base: tuple[ServedTotal, ...] = ()
    running: tuple[LaneRunning, ...] = ()
    prefixes: tuple[str, ...] = ()
    recent: dict[str, float] = {}
    asks: float | None = None
    num_owed: int = 0


class LostAttempt(Wire, frozen=True, kw_only=True):
    """A claim that came to nothing, as of a dead letter: who made it, when, and whether it was handed back."""

    worker: str
    at: float
    state: Literal["running", "released", "cancelled"] = "running"


class Forward(Wire, frozen=True, kw_only=True):
    """A prompt on its way from the worker that pulled it to another: as it came, and where it is acknowledged.

    `load` is the share of the sender's slots that is taken, `num_paid` what the prompt's lane has paid for it there.
    """

    worker: str
    load: float
    num_paid: int
    subject: str
    ack: str
    headers: bytes
    body: bytes


class DeadLetter(Wire, frozen=True, kw_only=True):
    """Why and when a request was given up, and the message it came as, but for its body: that is kept beside it.

    `headers` are those of the prompt without its stamp.
    """

    owner: str
    request: str
    model: str
    service_class: str
    tenant: str
    reason: Failure
    at: float
    attempts: tuple[LostAttempt, ...] = ()
    headers: dict[str, str] = {}


class Fairness(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What operators changed while the fleet runs: it wins over the settings. The value of `policy` `fairness`.

    Strict, because with nothing required any object would do for one, and reset what is in force.
    """

    weights: dict[str, Annotated[float, Meta(gt=0)]] = {}
    min_share: dict[Literal["default", "batch"], Annotated[float, Meta(ge=0, le=1)]] = {}


GuardrailAction: TypeAlias = Literal["block", "redact", "flag"]
GuardrailStage: TypeAlias = Literal["both", "input", "output"]


class GuardrailSet(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Terms under one name, what is done about them, and whether in prompts, in answers or in both.

    Without terms it says how one of the sets is applied that InferFlux brings along.
    """

    terms: tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...] = ()
    action: GuardrailAction = "block"
    stage: GuardrailStage = "both"


class Guardrails(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What operators changed while the fleet runs: it wins over the settings. The value of `policy` `guardrails`.

    `active` names the sets in force, and single terms; None leaves that to the settings.
    """

    active: tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...] | None = None
    sets: dict[Annotated[str, Meta(min_length=1, max_length=64)], GuardrailSet] = {}


ModelName: TypeAlias = Annotated[str, Meta(min_length=1)]
Limit: TypeAlias = Annotated[int, Meta(ge=1)]


class ModelRecord(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the registry. `path` is a file or folder on the workers' machines; without one the stub serves.

    What is missing at `path` is fetched from `source` first, a URL or `hf:ORG/REPO/FILE`. `hardware` is the class of
    workers that load it. A limit that is None is left to each worker's settings.
    """

    id: ModelName
    path: str | None = None
    source: str | None = None
    backend: Literal["auto", "llamacpp", "torch", "stub"] = "auto"
    aliases: tuple[ModelName, ...] = ()
    hardware: Literal["any", "cpu", "gpu"] = "any"
    context_length: Limit | None = None
    max_batch_size: Limit | None = None
    max_batch_tokens: Limit | None = None
    chunked_prefill_tokens: Limit | None = None


class ModelChange(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What operators changed of a model while the fleet runs, whoever owns its record; None leaves the record's value.

    A new number of `num_reloads` has its engine made anew.
    """

    aliases: tuple[ModelName, ...] | None = None
    hardware: Literal["any", "cpu", "gpu"] | None = None
    max_batch_size: Limit | None = None
    max_batch_tokens: Limit | None = None
    chunked_prefill_tokens: Limit | None = None
    num_reloads: int = 0


class FileMark(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which file's models are in force: its path, a digest of what it says, the replica that applied it, and when."""

    path: str
    digest: str
    replica: str
    at: float


class ModelRegistry(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every model of the fleet. The value of `registry` `models`.

    `listed` are those of the registry file and the settings, and change with them; `loaded` those that the admin API
    added. `default` is the operators' choice and wins over `listed_default`.
    """

    listed: tuple[ModelRecord, ...] = ()
    listed_default: str | None = None
    loaded: tuple[ModelRecord, ...] = ()
    default: str | None = None
    changes: dict[str, ModelChange] = {}
    file: FileMark | None = None


NumAllowed = Annotated[int, Meta(ge=0, le=2**53)]
"""How many of something; 0 is as many as one likes."""


class RateLimit(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key or a tenant may use up in a minute; None leaves it to what is said of all."""

    requests_per_minute: NumAllowed | None = None
    tokens_per_minute: NumAllowed | None = None


class TenantLimit(RateLimit, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant may use up, over all its keys and what it publishes itself."""

    tokens_per_month: NumAllowed | None = None


class Limits(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits that operators set while the fleet runs: of every key, of every tenant, and of those named. The value of
    `policy` `limits`."""

    key: RateLimit = RateLimit()
    tenant: TenantLimit = TenantLimit()
    keys: dict[str, RateLimit] = {}
    tenants: dict[str, TenantLimit] = {}


class ApiKey(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One API key, without the key: `digest` is its SHA-256, hexadecimal. The value of `tenants` `key.<id>`.

    An empty `models` allows every model. `expires` is None for a key that lasts until it is revoked.
    """

    id: str
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    tenant: str
    scopes: tuple[Scope, ...]
    models: tuple[str, ...] = ()
    name: str = ""
    created: float = 0.0
    expires: float | None = None


class TenantRecord(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What operators say of a tenant while the fleet runs. The value of `tenants` `tenant.<token>`.

    What is None is left to the settings.
    """

    id: str
    weight: Annotated[float, Meta(gt=0)] | None = None
    classes: Annotated[tuple[ServiceClassName, ...], Meta(min_length=1)] | None = None
    max_queued: Annotated[int, Meta(ge=1)] | None = None
    max_running: Annotated[int, Meta(ge=1)] | None = None
    cache_group: str | None = None
    publish: bool | None = None
    file_quota_bytes: Annotated[int, Meta(ge=1)] | None = None
    file_retention_s: Annotated[float, Meta(ge=1)] | None = None


class LineProblem(Wire, frozen=True, kw_only=True):
    """What is wrong with a batch's file; `line` counts from 1 and is None where it is about the whole file."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class LineCounts(Wire, frozen=True, kw_only=True):
    """Lines of a batch: all, those answered, and those that ended with an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0


BatchStatus: TypeAlias = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
]
BatchEnding: TypeAlias = Literal["completed", "expired", "cancelled"]


class Batch(Wire, frozen=True, kw_only=True):
    """A batch, as the bucket `batches` keeps it; times are Unix seconds, files are ids of objects of the tenant.

    `allowed_models` are those of the key that made it (none: all). `owner` is the API replica that works on it; it
    writes the entry again every second or so, and others take over what has not been written for a lease. `num_parts`
    is how much of the journal counts, once that is settled, and `ending` what the batch will end as. `key` names the
    API key that it came with.
    """

    id: str
    tenant: str
    endpoint: str
    input_file: str
    window: str
    created: float
    expires: float
    status: BatchStatus = "validating"
    metadata: dict[str, str] | None = None
    allowed_models: tuple[str, ...] = ()
    key: str | None = None
    output_retention_s: float | None = None
    model: str | None = None
    owner: str | None = None
    counts: LineCounts = LineCounts()
    usage: Usage = Usage()
    problems: tuple[LineProblem, ...] = ()
    num_problems: int = 0
    ending: BatchEnding | None = None
    num_parts: int | None = None
    output_file: str | None = None
    output_chunks: int = 0
    error_file: str | None = None
    error_chunks: int = 0
    started: float | None = None
    cancelling: float | None = None
    finalizing: float | None = None
    ended: float | None = None


class BatchSubmission(Wire, frozen=True, kw_only=True):
    """What a direct publisher puts into the bucket `batches` to have its file run: the object that its `chunks` chunks
    are of, their `digest` (SHA-256, hexadecimal), and what `POST /v1/batches` takes."""

    input_file: Annotated[str, Meta(min_length=1, max_length=128)]
    chunks: Annotated[int, Meta(ge=1)]
    digest: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None


class BatchEntry(Wire, frozen=True, kw_only=True):
    """One answered line in a batch's journal: its number, and the line that it becomes in the output or error file."""

    line: int
    failed: bool
    record: msgspec.Raw
    usage: Usage = Usage()


class ObjectInfo(Wire, frozen=True, kw_only=True):
    """An object in the object store, as NATS clients describe one: `digest` is `SHA-256=` and base64, `nuid` says where
    its `chunks` are, `mtime` is RFC 3339."""

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str
    mtime: str
    metadata: dict[str, str] = {}


class WarmPrefix(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How prompts of a tenant begin: every worker of the model computes it, so that its prefix cache has it.

    Either the text of prompts, or the first messages of conversations.
    """

    id: str
    model: str
    tenant: str
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    at: float = 0.0


class CacheOrders(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What operators want of the prefix caches: how often each model's was cleared, and what they shall hold. The value
    of `policy` `cache`."""

    cleared: dict[str, int] = {}
    warm: tuple[WarmPrefix, ...] = ()


class VaultKey(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key of a sealed policy store, wrapped by a passphrase: scrypt (RFC 7914), then AES-256-GCM. The value of
    `policy` `vault`."""

    n: int
    r: int
    p: int
    salt: bytes
    nonce: bytes
    wrapped: bytes
    version: Literal[1] = 1


class SealedRecord(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of a sealed policy store: AES-256-GCM, bound to bucket, key and generation, which grows by one with
    each change."""

    generation: Annotated[int, Meta(ge=1)]
    nonce: bytes
    box: bytes
    version: Literal[1] = 1


class Manifest(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The generation of every sealed entry, by `bucket/key`: what a process that starts must find at least. The value
    of `policy` `manifest`, sealed itself."""

    generations: dict[str, int] = {}


T = TypeVar("T", bound=Wire)

_encoder = msgspec.json.Encoder()
_prompt_decoder: msgspec.json.Decoder[AnyPrompt] = msgspec.json.Decoder(AnyPrompt)
_frame_decoder = msgspec.json.Decoder(Frame)
_end_decoder = msgspec.json.Decoder(_End)
_claim_decoder = msgspec.json.Decoder(Claim)
_head_decoder = msgspec.json.Decoder(Head)
_beat_decoder = msgspec.json.Decoder(WorkerBeat)
_gossip_decoder = msgspec.json.Decoder(Gossip)
_forward_decoder = msgspec.json.Decoder(Forward)
_dead_letter_decoder = msgspec.json.Decoder(DeadLetter)


def encode(message: Wire) -> bytes:
    """JSON bytes of any message."""
    return _encoder.encode(message)


def decode_prompt(body: bytes) -> AnyPrompt:
    """Raises msgspec.ValidationError naming the field, or msgspec.DecodeError for what is no JSON."""
    return _prompt_decoder.decode(body)


def decode_frame(body: bytes) -> Frame:
    return _frame_decoder.decode(body)


def ends(body: bytes) -> bool:
    """Whether a frame is the terminal one, also where the rest of it cannot be understood."""
    try:
        end = _end_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return end.usage is not None or end.error is not None


def decode_claim(body: bytes) -> Claim:
    """What is no claim counts as one of a worker that is gone: whoever has the prompt may put its own over it."""
    try:
        return _claim_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Claim(worker="", num_attempts=0)


def decode_head(body: bytes) -> Head:
    return _head_decoder.decode(body)


def decode_beat(body: bytes) -> WorkerBeat:
    return _beat_decoder.decode(body)


def decode_gossip(body: bytes) -> Gossip:
    return _gossip_decoder.decode(body)


def decode_forward(body: bytes) -> Forward:
    return _forward_decoder.decode(body)


def decode_dead_letter(body: bytes) -> DeadLetter:
    return _dead_letter_decoder.decode(body)


def json_schema() -> dict[str, Any]:
    """JSON Schema components of the whole message surface, for documents and for other languages."""
    _, components = msgspec.json.schema_components(
        (
            CompletionPrompt,
            ChatPrompt,
            EmbeddingPrompt,
            Head,
            Claim,
            Frame,
            WorkerBeat,
            Gossip,
            Forward,
            DeadLetter,
            Fairness,
            ModelRegistry,
            CacheOrders,
            Guardrails,
        ),
        ref_template="#/components/schemas/{name}",
    )
    return dict(components)


def failure(code: Code, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> Failure:
    return Failure(code=code.value, message=message, param=param, retry_after_s=retry_after_s)
