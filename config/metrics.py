"""Every Prometheus metric of the project, in one class for each kind of process.

Names follow vLLM's where it has one, under `inferflux_`; the client library appends `_total` to counters.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BETWEEN_TOKENS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_STEP_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class PolicyMetrics:
    """What guardrails and the audit log did in one process, whichever kind it is."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.guardrail_blocks = Counter(
            "inferflux_guardrail_blocks",
            "What guardrails found in prompts (input) and answers (output), and what they did about it.",
            ("stage", "guardrail", "action"),
            registry=registry,
        )
        self.audit_lines = Counter("inferflux_audit_lines", "Lines written to the audit log.", registry=registry)
        self.audit_lost = Counter(
            "inferflux_audit_lost",
            "Lines that never reached the audit log because it could not be written for too long.",
            registry=registry,
        )
        self.policy_refused = Gauge(
            "inferflux_policy_refused_entries",
            "Entries of the policy store that somebody without its passphrase changed, and that are not followed.",
            registry=registry,
        )

    def count(self, stage: str, guardrail: str, action: str) -> None:
        """One thing that a guardrail found."""
        self.guardrail_blocks.labels(stage, guardrail, action).inc()


class ApiMetrics:
    """What one API replica sees: requests as their clients do, and the queues."""

    def __init__(self, registry: CollectorRegistry) -> None:
        model = ("model",)
        self.http_requests = Counter(
            "inferflux_http_requests",
            "HTTP requests answered, by route pattern and status.",
            ("method", "route", "status"),
            registry=registry,
        )
        self.request_success = Counter(
            "inferflux_request_success",
            "Requests that ended without an error, by finish reason.",
            ("model", "finished_reason"),
            registry=registry,
        )
        self.request_errors = Counter(
            "inferflux_request_errors",
            "Requests that ended with an error, by error code.",
            ("model", "code"),
            registry=registry,
        )
        self.stream_tokens = Counter(
            "inferflux_stream_tokens", "Tokens relayed to HTTP clients.", model, registry=registry
        )
        self.streams_open = Gauge(
            "inferflux_streams_open", "Requests whose answer is under way.", model, registry=registry
        )
        self.time_to_first_token = Histogram(
            "inferflux_time_to_first_token_seconds",
            "From the request's arrival to its first token.",
            model,
            buckets=_FIRST_TOKEN_S,
            registry=registry,
        )
        self.inter_token_latency = Histogram(
            "inferflux_inter_token_latency_seconds",
            "Between a choice's tokens as they are relayed.",
            model,
            buckets=_BETWEEN_TOKENS_S,
            registry=registry,
        )
        self.e2e_request_latency = Histogram(
            "inferflux_e2e_request_latency_seconds",
            "From the request's arrival to the end of its answer.",
            model,
            buckets=_REQUEST_S,
            registry=registry,
        )
        self.queue_depth = Gauge(
            "inferflux_queue_depth",
            "Prompts stored for a model, waiting and running.",
            ("model", "service_class", "tenant"),
            registry=registry,
        )
        self.limit_refusals = Counter(
            "inferflux_limit_refusals",
            "Requests refused because a limit of their key or tenant was used up, by error code.",
            ("code",),
            registry=registry,
        )
        self.dead_letters = Gauge(
            "inferflux_dead_letters", "Requests that were given up and are kept.", registry=registry
        )
        self.swept = Counter(
            "inferflux_swept",
            "Prompts that this replica ended because nobody pulled them, by error code.",
            ("model", "code"),
            registry=registry,
        )
        self.batches = Gauge(
            "inferflux_batches", "Batches that have not ended, by status.", ("status",), registry=registry
        )
        self.batches_running = Gauge(
            "inferflux_batches_running", "Batches that this replica works on.", registry=registry
        )
        self.batch_lines = Counter(
            "inferflux_batch_lines",
            "Batch lines that ended at this replica: completed, failed, or tried again.",
            ("model", "outcome"),
            registry=registry,
        )
        self.batch_lines_running = Gauge(
            "inferflux_batch_lines_running", "Batch lines that this replica has in flight.", registry=registry
        )
        self.batch_takeovers = Counter(
            "inferflux_batch_takeovers",
            "Batches that this replica took over from one that fell silent.",
            registry=registry,
        )
        self.file_bytes = Counter(
            "inferflux_file_bytes", "Bytes of files, by direction: in or out.", ("direction",), registry=registry
        )
        self.workers = Gauge("inferflux_workers", "Live workers that serve a model.", model, registry=registry)
        self.tape_fill = Gauge("inferflux_tape_fill", "Share of the tape's byte limit in use.", registry=registry)
        self.registry_events = Counter(
            "inferflux_registry_events",
            "Changes of the models that this replica saw: added, removed, changed, default, and file_applied, "
            "file_refused, file_conflict.",
            ("event",),
            registry=registry,
        )
        self.registry_models = Gauge("inferflux_registry_models", "Models that can be asked for.", registry=registry)
        self.registry_file_applied = Gauge(
            "inferflux_registry_file_applied",
            "1 while what this replica's registry file says is in force.",
            registry=registry,
        )


class FleetMetrics:
    """What the workers' heartbeats say, shown by an API replica under the name of each worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        model = ("worker", "model")
        self.num_requests_running = Gauge(
            "inferflux_num_requests_running", "Sequences in the batch.", model, registry=registry
        )
        self.num_requests_waiting = Gauge(
            "inferflux_num_requests_waiting", "Sequences that wait for a slot or for pages.", model, registry=registry
        )
        self.num_free_slots = Gauge(
            "inferflux_num_free_slots", "Sequences that could start at once.", model, registry=registry
        )
        self.kv_pages = Gauge("inferflux_kv_pages", "KV pages there are.", model, registry=registry)
        self.kv_pages_in_use = Gauge(
            "inferflux_kv_pages_in_use", "KV pages held by sequences.", model, registry=registry
        )
        self.kv_cache_usage = Gauge(
            "inferflux_kv_cache_usage_perc",
            "Share of the KV pages held by sequences, 0 to 1.",
            model,
            registry=registry,
        )
        self.tokens_per_s = Gauge(
            "inferflux_worker_tokens_per_second", "Tokens generated lately.", model, registry=registry
        )
        self.rss_bytes = Gauge("inferflux_worker_rss_bytes", "Resident memory.", ("worker",), registry=registry)


class WorkerMetrics:
    """What one worker does: its engine, its pages and its share of the requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        model = ("model",)
        self.num_requests_running = Gauge(
            "inferflux_num_requests_running", "Sequences in the batch.", model, registry=registry
        )
        self.num_requests_waiting = Gauge(
            "inferflux_num_requests_waiting",
            "Sequences that this worker has pulled and that wait for a slot or for pages.",
            model,
            registry=registry,
        )
        self.kv_pages_in_use = Gauge(
            "inferflux_kv_pages_in_use", "KV pages held by sequences.", model, registry=registry
        )
        self.kv_cache_usage = Gauge(
            "inferflux_kv_cache_usage_perc",
            "Share of the KV pages held by sequences, 0 to 1.",
            model,
            registry=registry,
        )
        self.prefix_cache_queries = Counter(
            "inferflux_prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", model, registry=registry
        )
        self.prefix_cache_hits = Counter(
            "inferflux_prefix_cache_hits", "Prompt tokens found in the prefix cache.", model, registry=registry
        )
        self.num_preemptions = Counter(
            "inferflux_num_preemptions", "Sequences that gave up their pages to others.", model, registry=registry
        )
        self.offload_active = Gauge(
            "inferflux_offload_active", "1 while cached prefixes go to a disk and come back.", model, registry=registry
        )
        self.offload_bytes = Gauge(
            "inferflux_offload_bytes", "Bytes of saved prefixes on the disk.", model, registry=registry
        )
        self.offload_reads = Counter(
            "inferflux_offload_reads", "Saved prefixes that were read back.", model, registry=registry
        )
        self.offload_read_bytes = Counter(
            "inferflux_offload_read_bytes", "Bytes of saved prefixes that were read back.", model, registry=registry
        )
        self.offload_writes = Counter(
            "inferflux_offload_writes", "Prefixes that were written to the disk.", model, registry=registry
        )
        self.offload_write_bytes = Counter(
            "inferflux_offload_write_bytes",
            "Bytes of prefixes that were written to the disk.",
            model,
            registry=registry,
        )
        self.offload_misses = Counter(
            "inferflux_offload_misses",
            "Prefixes that were looked for on the disk and not used: absent, damaged, or slower than computing.",
            model,
            registry=registry,
        )
        self.offload_drops = Counter(
            "inferflux_offload_drops",
            "Prefixes that were not written because the disk was behind or they were too large.",
            model,
            registry=registry,
        )
        self.prompt_tokens = Counter("inferflux_prompt_tokens", "Prompt tokens computed.", model, registry=registry)
        self.generation_tokens = Counter("inferflux_generation_tokens", "Tokens generated.", model, registry=registry)
        self.requests = Counter(
            "inferflux_worker_requests",
            "Attempts that ended at this worker: finished, failed, cancelled, released, lost or forwarded.",
            ("model", "outcome"),
            registry=registry,
        )
        self.prompts_offered = Counter(
            "inferflux_worker_prompts_offered",
            "Pulled prompts that were offered to a worker which suits them better: taken, refused or unanswered.",
            ("model", "outcome"),
            registry=registry,
        )
        self.limit_refusals = Counter(
            "inferflux_limit_refusals",
            "Requests refused because a limit of their key or tenant was used up, by error code.",
            ("code",),
            registry=registry,
        )
        self.request_queue_time = Histogram(
            "inferflux_request_queue_time_seconds",
            "From a prompt's acceptance to its claim.",
            model,
            buckets=_REQUEST_S,
            registry=registry,
        )
        self.request_prefill_time = Histogram(
            "inferflux_request_prefill_time_seconds",
            "From a prompt's claim to its first token.",
            model,
            buckets=_FIRST_TOKEN_S,
            registry=registry,
        )
        self.request_decode_time = Histogram(
            "inferflux_request_decode_time_seconds",
            "From a request's first token to its last.",
            model,
            buckets=_REQUEST_S,
            registry=registry,
        )
        self.step_time = Histogram(
            "inferflux_step_seconds", "One engine step.", model, buckets=_STEP_S, registry=registry
        )
        self.batch_size = Histogram(
            "inferflux_batch_size", "Sequences in one engine step.", model, buckets=_BATCH, registry=registry
        )
        self.registry_loads = Counter(
            "inferflux_registry_loads",
            "Models that this worker loaded, failed to load, or unloaded.",
            ("model", "outcome"),
            registry=registry,
        )
        self.registry_load_time = Histogram(
            "inferflux_registry_load_seconds",
            "From the decision to load a model until it could serve.",
            model,
            buckets=_REQUEST_S,
            registry=registry,
        )
