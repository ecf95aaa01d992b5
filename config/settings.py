"""Typed settings: what may be set, where it came from, and nothing that reads the environment at import."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
ServiceClassName = Literal["priority", "default", "batch"]
Scope = Literal["generate", "read", "admin"]
# Only those that a public key checks: with a shared secret, whoever checks tokens could also make them.
SignatureAlgorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"
]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every settings section."""


class ServerSettings(Section, frozen=True, kw_only=True):
    """Where and how the HTTP server listens."""

    host: str = "127.0.0.1"
    port: Port = 8080
    tls_cert: str | None = None
    tls_key: str | None = None
    max_body_bytes: Positive = 4 * 1024 * 1024
    drain_timeout_s: Seconds = 30.0
    drain_notice_s: Seconds = 0.0
    hold_status_s: Seconds = 1.0
    ping_interval_s: Seconds = 5.0


class BrokerSettings(Section, frozen=True, kw_only=True):
    """Where NATS is. Without `url` an embedded nats-server is started on loopback."""

    url: str | None = None
    user: str | None = None
    password: str | None = None
    credentials: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    store_dir: str = "var/nats"
    port: Port = 4222
    sync_interval: str = "always"
    replicas: Literal[1, 3, 5] = 1
    timeout_s: Seconds = 5.0
    stamp_secret: str | None = None
    seal_secret: str | None = None


class QueueSettings(Section, frozen=True, kw_only=True):
    """Bounds on what waits, leases on what runs."""

    max_msgs_per_subject: Positive = 10_000
    max_bytes: Positive = 2 * 1024 * 1024 * 1024
    max_lanes: Positive = 900
    lane_idle_s: Seconds = 300.0
    max_running_per_lane: Positive = 256
    lease_s: Annotated[float, Meta(ge=1)] = 15.0
    queue_timeout_s: Seconds = 600.0
    no_backend_grace_s: Seconds = 10.0
    max_attempts: Positive = 3
    resync_interval_s: Seconds = 1.0
    dead_max_letters: Positive = 1000
    dead_max_bytes: Positive = 64 * 1024 * 1024
    dead_max_age_s: Annotated[float, Meta(ge=1)] = 7 * 24 * 3600.0


class TapeSettings(Section, frozen=True, kw_only=True):
    """How much of what was generated is kept, and for how long after a request has ended."""

    max_bytes: Positive = 256 * 1024 * 1024
    window_s: Seconds = 60.0
    max_age_s: Seconds = 3600.0
    high_water: Share = 0.8
    ack_timeout_s: Seconds = 1.0


class KeySettings(Section, frozen=True, kw_only=True):
    """One API key. A key without a tenant is its own tenant, named by a digest of the key."""

    key: str
    tenant: str | None = None
    scopes: tuple[Scope, ...] = ("generate", "read")
    models: tuple[str, ...] = ()


class OidcGroup(Section, frozen=True, kw_only=True):
    """What the members of one of the issuer's groups may do, and as which tenant. No models means all."""

    group: str
    scopes: tuple[Scope, ...] = ()
    tenant: str | None = None
    models: tuple[str, ...] = ()


class AuthSettings(Section, frozen=True, kw_only=True):
    """Who may call the API: by a key, or by a token of an OIDC issuer, signed by one of the algorithms."""

    api_keys: tuple[KeySettings, ...] = ()
    rate_limit_per_minute: Annotated[int, Meta(ge=0)] = 0
    oidc_issuer: str | None = None
    oidc_audience: str | None = None
    oidc_algorithms: tuple[SignatureAlgorithm, ...] = ("RS256", "PS256", "ES256", "EdDSA")
    oidc_scope_claim: str = "scope"
    oidc_scope_prefix: str = "inferflux:"
    oidc_groups_claim: str = "groups"
    oidc_groups: tuple[OidcGroup, ...] = ()
    oidc_tenant_claim: str | None = None
    oidc_skew_s: Seconds = 30.0
    oidc_jwks_ttl_s: Seconds = 300.0
    oidc_jwks_stale_s: Seconds = 3600.0
    oidc_refetch_s: Annotated[float, Meta(ge=0.1)] = 10.0


class TenantSettings(Section, frozen=True, kw_only=True):
    """A tenant's share and rights. `publish` gives it NATS credentials of its own."""

    id: str
    weight: Annotated[float, Meta(gt=0)] = 1.0
    classes: tuple[ServiceClassName, ...] = ("default", "batch")
    max_queued: Positive | None = None
    max_running: Positive | None = None
    cache_group: str | None = None
    publish: bool = False
    file_quota_bytes: Positive | None = None
    file_retention_s: Annotated[float, Meta(ge=1)] | None = None


class RegistrySettings(Section, frozen=True, kw_only=True):
    """The file that names the models. Over HTTP only files under `roots` are loaded; without any, those beside the
    registry file and under `models`."""

    path: str = "config/registry.yaml"
    poll_interval_s: Seconds = 2.0
    roots: tuple[str, ...] = ()


class ModelSettings(Section, frozen=True, kw_only=True):
    """One model served without a registry; its id is the file's stem unless given."""

    path: str | None = None
    id: str | None = None
    backend: Literal["auto", "llamacpp", "torch", "stub"] = "auto"


class GuardrailSetSettings(Section, frozen=True, kw_only=True):
    """Terms under a name, or, without terms, how one of the sets is applied that are built in."""

    name: str
    terms: tuple[str, ...] = ()
    action: Literal["block", "redact", "flag"] = "block"
    stage: Literal["both", "input", "output"] = "both"


class GuardrailSettings(Section, frozen=True, kw_only=True):
    """What prompts and answers are checked against: `blocklist` names sets and single terms; OPA judges prompts."""

    blocklist: tuple[str, ...] = ()
    sets: tuple[GuardrailSetSettings, ...] = ()
    opa_endpoint: str | None = None
    opa_timeout_s: Annotated[float, Meta(gt=0, le=60)] = 1.0
    opa_fail_open: bool = False
    opa_cache_ttl_s: Seconds = 0.0


class LoggingSettings(Section, frozen=True, kw_only=True):
    """What is logged, how, and where the audit log goes. `audit_required` refuses requests while it cannot be written;
    `audit_prompts` puts the prompts that guardrails refused into it."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"
    audit_log: str | None = None
    audit_required: bool = False
    audit_prompts: bool = False


class SchedulerSettings(Section, frozen=True, kw_only=True):
    """Bounds on one engine step."""

    max_batch_tokens: Positive = 512
    max_batch_size: Positive = 32
    chunked_prefill_tokens: Positive = 256


class PagedKVSettings(Section, frozen=True, kw_only=True):
    """The KV cache: `cpu_pages` of `page_size` tokens; 0 pages sizes it from the model and the batch size.

    Prefixes that are pushed out of it go to at most `nvme_bytes` of files under `nvme_path`.
    """

    cpu_pages: Annotated[int, Meta(ge=0)] = 0
    page_size: Positive = 16
    nvme_path: str | None = None
    nvme_bytes: Positive = 8 * 1024 * 1024 * 1024
    type: Literal["f16", "q8_0"] = "f16"


class LlamaCppSettings(Section, frozen=True, kw_only=True):
    """Options of the llama.cpp backend; 0 threads means one for each physical core that is really there."""

    n_gpu_layers: int = 0
    threads: Annotated[int, Meta(ge=0)] = 0
    flash_attention: bool | None = None
    context_length: Annotated[int, Meta(ge=0)] = 0


class TorchSettings(Section, frozen=True, kw_only=True):
    """Options of the torch backend; 0 threads means one for each physical core that is really there. `dtype` is that of
    weights and KV; `quantization` stores the matrices in 8 bits instead, on a CPU."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: Literal["none", "int8"] = "none"
    threads: Annotated[int, Meta(ge=0)] = 0
    context_length: Annotated[int, Meta(ge=0)] = 0


class StubSettings(Section, frozen=True, kw_only=True):
    """The stub backend: seconds for each step and for each prompt token, slots and context length."""

    step_s: Seconds = 0.005
    prefill_token_s: Seconds = 0.0
    context_length: Positive = 8192


class RuntimeSettings(Section, frozen=True, kw_only=True):
    """The engine and its backends. A request's tokens leave `frame_interval_s` apart at least; what came in between
    travels together."""

    frame_interval_s: Seconds = 0.02
    scheduler: SchedulerSettings = SchedulerSettings()
    paged_kv: PagedKVSettings = PagedKVSettings()
    llamacpp: LlamaCppSettings = LlamaCppSettings()
    torch: TorchSettings = TorchSettings()
    stub: StubSettings = StubSettings()


class MinShareSettings(Section, frozen=True, kw_only=True):
    """The share of what the classes above it were served that a class gets at least."""

    default: Share = 0.2
    batch: Share = 0.05


class FairnessSettings(Section, frozen=True, kw_only=True):
    """How tenants and classes share a model."""

    min_share: MinShareSettings = MinShareSettings()
    share_window_s: Seconds = 10.0
    gossip_interval_s: Seconds = 0.1
    input_cost: Annotated[float, Meta(gt=0)] = 1.0
    output_cost: Annotated[float, Meta(gt=0)] = 2.0


class StreamSettings(Section, frozen=True, kw_only=True):
    """Streams whose client went away."""

    resume_grace_s: Seconds = 30.0
    idempotency_ttl_s: Annotated[float, Meta(ge=1)] = 24 * 3600.0


class FileSettings(Section, frozen=True, kw_only=True):
    """Files that tenants upload and results that batches leave: the largest, how much a tenant may keep, how long."""

    max_bytes: Positive = 200 * 1024 * 1024
    quota_bytes: Positive = 4 * 1024 * 1024 * 1024
    retention_s: Annotated[float, Meta(ge=1)] = 30 * 24 * 3600.0


class BatchSettings(Section, frozen=True, kw_only=True):
    """Batches: how long one may be, how many of a tenant run or wait, and how many lines of one are queued."""

    max_lines: Positive = 50_000
    max_in_flight: Positive = 128
    max_running: Positive = 4
    max_unfinished: Positive = 100
    lease_s: Annotated[float, Meta(ge=1)] = 8.0
    retention_s: Annotated[float, Meta(ge=1)] = 30 * 24 * 3600.0


class WorkerSettings(Section, frozen=True, kw_only=True):
    """The worker process. `metrics_port` 0 picks a free one; `hardware` says which class of models it loads."""

    heartbeat_s: Seconds = 1.0
    drain_timeout_s: Seconds = 30.0
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 0
    hang_timeout_s: Seconds = 60.0
    hardware: Literal["auto", "cpu", "gpu"] = "auto"


class TracingSettings(Section, frozen=True, kw_only=True):
    """Where OpenTelemetry spans go, by OTLP over HTTP, and the share of requests that make some when their client did
    not decide. Without an endpoint there are none."""

    endpoint: str | None = None
    sample: Share = 1.0


class Settings(Section, frozen=True, kw_only=True):
    """Everything; each field is a section of the YAML file."""

    server: ServerSettings = ServerSettings()
    broker: BrokerSettings = BrokerSettings()
    queue: QueueSettings = QueueSettings()
    tape: TapeSettings = TapeSettings()
    auth: AuthSettings = AuthSettings()
    tenants: tuple[TenantSettings, ...] = ()
    registry: RegistrySettings = RegistrySettings()
    model: ModelSettings = ModelSettings()
    guardrails: GuardrailSettings = GuardrailSettings()
    logging: LoggingSettings = LoggingSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    fairness: FairnessSettings = FairnessSettings()
    streams: StreamSettings = StreamSettings()
    files: FileSettings = FileSettings()
    batches: BatchSettings = BatchSettings()
    worker: WorkerSettings = WorkerSettings()
    tracing: TracingSettings = TracingSettings()
