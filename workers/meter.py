"""The meter: what a worker shows to Prometheus."""

from __future__ import annotations

import time

from inferflux.config.metrics import WorkerMetrics

from .attempt import Attempt
from .engine.job import EngineStats
from .engine.offload import OffloadStats
from .host import ModelHost


class Meter:
    """Turns the engines' totals into counters and gauges, and ended attempts into histograms."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._before: dict[str, EngineStats] = {}

    def read(self, host: ModelHost) -> None:
        """Bring one model's metrics up to date."""
        metrics, model = self._metrics, host.model
        stats, before = host.stats(), self._before.get(model, EngineStats())
        self._before[model] = stats
        metrics.num_requests_running.labels(model).set(stats.num_running)
        metrics.num_requests_waiting.labels(model).set(stats.num_waiting)
        metrics.kv_pages_in_use.labels(model).set(stats.num_pages_used)
        metrics.kv_cache_usage.labels(model).set(stats.num_pages_used / stats.num_pages if stats.num_pages else 0.0)
        metrics.prefix_cache_queries.labels(model).inc(stats.prefix_queries - before.prefix_queries)
        metrics.prefix_cache_hits.labels(model).inc(stats.prefix_hits - before.prefix_hits)
        metrics.num_preemptions.labels(model).inc(stats.num_preemptions - before.num_preemptions)
        metrics.prompt_tokens.labels(model).inc(stats.prompt_tokens - before.prompt_tokens)
        metrics.generation_tokens.labels(model).inc(stats.generated_tokens - before.generated_tokens)
        self._read_offload(model, stats.offload, before.offload)

    def _read_offload(self, model: str, stats: OffloadStats, before: OffloadStats) -> None:
        metrics = self._metrics
        metrics.offload_active.labels(model).set(stats.active)
        metrics.offload_bytes.labels(model).set(stats.num_bytes)
        metrics.offload_reads.labels(model).inc(stats.num_reads - before.num_reads)
        metrics.offload_read_bytes.labels(model).inc(stats.read_bytes - before.read_bytes)
        metrics.offload_writes.labels(model).inc(stats.num_writes - before.num_writes)
        metrics.offload_write_bytes.labels(model).inc(stats.write_bytes - before.write_bytes)
        metrics.offload_misses.labels(model).inc(stats.num_misses - before.num_misses)
        metrics.offload_drops.labels(model).inc(stats.num_drops - before.num_drops)

    def attempt_ended(self, attempt: Attempt) -> None:
        """Count an attempt and the time it spent in each part of its life."""
        metrics, model = self._metrics, attempt.delivery.lane.model
        metrics.requests.labels(model, attempt.outcome).inc()
        if attempt.claimed_s is None:
            return
        now_s = time.monotonic()
        prompt, answer = attempt.task.prompt, attempt.answer
        if prompt is not None and prompt.created:
            waited_s = time.time() - prompt.created - (now_s - attempt.claimed_s)
            metrics.request_queue_time.labels(model).observe(max(0.0, waited_s))
        if answer is not None and answer.first_token_s is not None:
            metrics.request_prefill_time.labels(model).observe(answer.first_token_s - attempt.claimed_s)
            metrics.request_decode_time.labels(model).observe(now_s - answer.first_token_s)
