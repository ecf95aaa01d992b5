"""The meter: what a worker shows to Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from prometheus_client import Gauge

from inferflux.broker.errors import Code
from inferflux.broker.trace import Tracer
from inferflux.config.metrics import WorkerMetrics

from .attempt import Attempt
from .engine.job import EngineStats
from .engine.offload import OffloadStats
from .host import ModelHost
from .mount import Mount
from .placement import Outcome, Placement
from .trace import record

LIMIT_CODES = (Code.RATE_LIMIT_EXCEEDED, Code.INSUFFICIENT_QUOTA)


class Meter:
    """Turns the engines' totals into counters and gauges, and ended attempts into histograms."""

    def __init__(self, metrics: WorkerMetrics, tracer: Tracer | None = None) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._before: WeakKeyDictionary[ModelHost, EngineStats] = WeakKeyDictionary()
        self._offers: WeakKeyDictionary[Placement, Counter[Outcome]] = WeakKeyDictionary()
        self._shown: set[str] = set()

    def read(self, mounts: Mapping[str, Mount]) -> None:
        """Bring every model's metrics up to date; gauges of models that are gone go too."""
        for model in self._shown - mounts.keys():
            for gauge in self._gauges():
                gauge.remove(model)
        self._shown = set(mounts)
        for model, mount in mounts.items():
            stats = [host.stats() for host in mount.hosts]
            self._set_gauges(model, stats)
            self._count_offers(model, mount.intake.placement)
            for host, each in zip(mount.hosts, stats, strict=True):
                self._count(model, each, self._before.get(host, EngineStats()))
                self._before[host] = each

    def _gauges(self) -> tuple[Gauge, ...]:
        metrics = self._metrics
        return (
            metrics.num_requests_running,
            metrics.num_requests_waiting,
            metrics.kv_pages_in_use,
            metrics.kv_cache_usage,
            metrics.offload_active,
            metrics.offload_bytes,
        )

    def _set_gauges(self, model: str, stats: Sequence[EngineStats]) -> None:
        """Over all engines of a model: one that was replaced may still finish what it runs."""
        num_pages, num_used = sum(each.num_pages for each in stats), sum(each.num_pages_used for each in stats)
        values = (
            sum(each.num_running for each in stats),
            sum(each.num_waiting for each in stats),
            num_used,
            num_used / num_pages if num_pages else 0.0,
            any(each.offload.active for each in stats),
            sum(each.offload.num_bytes for each in stats),
        )
        for gauge, value in zip(self._gauges(), values, strict=True):
            gauge.labels(model).set(value)

    def _count(self, model: str, stats: EngineStats, before: EngineStats) -> None:
        metrics = self._metrics
        metrics.prefix_cache_queries.labels(model).inc(stats.prefix_queries - before.prefix_queries)
        metrics.prefix_cache_hits.labels(model).inc(stats.prefix_hits - before.prefix_hits)
        metrics.num_preemptions.labels(model).inc(stats.num_preemptions - before.num_preemptions)
        metrics.prompt_tokens.labels(model).inc(stats.prompt_tokens - before.prompt_tokens)
        metrics.generation_tokens.labels(model).inc(stats.generated_tokens - before.generated_tokens)
        self._count_offload(model, stats.offload, before.offload)

    def _count_offers(self, model: str, placement: Placement) -> None:
        before = self._offers.get(placement, Counter())
        for outcome, number in placement.num_offered.items():
            self._metrics.prompts_offered.labels(model, outcome).inc(number - before[outcome])
        self._offers[placement] = Counter(placement.num_offered)

    def _count_offload(self, model: str, stats: OffloadStats, before: OffloadStats) -> None:
        metrics = self._metrics
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
        error = attempt.answer.error if attempt.answer is not None else None
        if error is not None and error.code in LIMIT_CODES:
            metrics.limit_refusals.labels(error.code).inc()
        if attempt.claimed_s is None:
            return
        if self._tracer is not None:
            record(self._tracer, attempt, time.monotonic())
        now_s = time.monotonic()
        prompt, answer = attempt.task.prompt, attempt.answer
        if prompt is not None and prompt.created:
            waited_s = time.time() - prompt.created - (now_s - attempt.claimed_s)
            metrics.request_queue_time.labels(model).observe(max(0.0, waited_s))
        if answer is not None and answer.first_token_s is not None:
            metrics.request_prefill_time.labels(model).observe(answer.first_token_s - attempt.claimed_s)
            metrics.request_decode_time.labels(model).observe(now_s - answer.first_token_s)
