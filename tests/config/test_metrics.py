from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from inferflux.config.metrics import ApiMetrics, WorkerMetrics

API = {
    "inferflux_e2e_request_latency_seconds",
    "inferflux_http_requests_total",
    "inferflux_inter_token_latency_seconds",
    "inferflux_queue_depth",
    "inferflux_request_success_total",
    "inferflux_stream_tokens_total",
    "inferflux_time_to_first_token_seconds",
}
WORKER = {
    "inferflux_batch_size",
    "inferflux_generation_tokens_total",
    "inferflux_kv_cache_usage_perc",
    "inferflux_kv_pages_in_use",
    "inferflux_num_preemptions_total",
    "inferflux_num_requests_running",
    "inferflux_num_requests_waiting",
    "inferflux_prefix_cache_hits_total",
    "inferflux_prefix_cache_queries_total",
    "inferflux_prompt_tokens_total",
    "inferflux_request_decode_time_seconds",
    "inferflux_request_prefill_time_seconds",
    "inferflux_request_queue_time_seconds",
    "inferflux_step_seconds",
}


def exposed(registry: CollectorRegistry) -> set[str]:
    text = generate_latest(registry).decode()
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}


def test_names_are_those_that_operators_know():
    api, worker = CollectorRegistry(), CollectorRegistry()
    ApiMetrics(api)
    WorkerMetrics(worker)
    assert exposed(api) >= API
    assert exposed(worker) >= WORKER
    assert all(name.startswith("inferflux_") for name in exposed(api) | exposed(worker))


def test_finish_reasons_are_labels():
    registry = CollectorRegistry()
    ApiMetrics(registry).request_success.labels("m", "stop").inc()
    assert (
        registry.get_sample_value("inferflux_request_success_total", {"model": "m", "finished_reason": "stop"}) == 1.0
    )
