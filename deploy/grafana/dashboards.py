"""The dashboards as code: `python deploy/grafana/dashboards.py` writes fleet.json, model.json, tenant.json and
broker.json beside this file. Grafana reads those (compose.yaml), and a test holds them to this file and every query to
what processes expose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

WIDTH, HEIGHT = 8, 8


class Panel(NamedTuple):
    """One graph: a query for each legend, and a unit of Grafana's."""

    title: str
    queries: dict[str, str]
    unit: str = "short"


def _quantiles(metric: str, by: str = "model", where: str = "") -> dict[str, str]:
    """Median and 95th percentile of a histogram."""
    rate = f"sum by ({by}, le) (rate({metric}_bucket{where}[$__rate_interval]))"
    return {
        f"{{{{{by}}}}} {name}": f"histogram_quantile({share}, {rate})" for name, share in (("p50", 0.5), ("p95", 0.95))
    }


def _rate(metric: str, by: str, where: str = "") -> dict[str, str]:
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return {legend: f"sum by ({by}) (rate({metric}{where}[$__rate_interval]))"}


def _fleet(metric: str, by: str, where: str = "") -> dict[str, str]:
    """A gauge that every API replica reports for the whole fleet."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return {legend: f"max by ({by}) (sum by (instance, {by}) ({metric}{where}))"}


_WORKER = '{worker!=""}'
_MODEL = '{model=~"$model"}'
_WORKER_OF_MODEL = '{worker!="",model=~"$model"}'
_TENANT = '{tenant=~"$tenant"}'

FLEET = [
    Panel("Prompts stored, waiting and running", _fleet("inferflux_queue_depth", "model")),
    Panel("Tokens generated", _rate("inferflux_generation_tokens_total", "model"), "cps"),
    Panel("Workers that serve a model", {"{{model}}": "max by (model) (inferflux_workers)"}),
    Panel("First token", _quantiles("inferflux_time_to_first_token_seconds"), "s"),
    Panel("HTTP requests", _rate("inferflux_http_requests_total", "status"), "reqps"),
    Panel("Requests that ended with an error", _rate("inferflux_request_errors_total", "code"), "reqps"),
    Panel("KV pages in use", _fleet("inferflux_kv_cache_usage_perc", "worker, model", _WORKER), "percentunit"),
    Panel("Tokens a second of each worker", _fleet("inferflux_worker_tokens_per_second", "worker, model", _WORKER)),
    Panel("Memory of each worker", _fleet("inferflux_worker_rss_bytes", "worker", _WORKER), "bytes"),
]
MODEL = [
    Panel("First token", _quantiles("inferflux_time_to_first_token_seconds", where=_MODEL), "s"),
    Panel("Between tokens", _quantiles("inferflux_inter_token_latency_seconds", where=_MODEL), "s"),
    Panel("Whole request", _quantiles("inferflux_e2e_request_latency_seconds", where=_MODEL), "s"),
    Panel("In the queue", _quantiles("inferflux_request_queue_time_seconds", where=_MODEL), "s"),
    Panel("Prefill", _quantiles("inferflux_request_prefill_time_seconds", where=_MODEL), "s"),
    Panel("Decode", _quantiles("inferflux_request_decode_time_seconds", where=_MODEL), "s"),
    Panel("Engine step", _quantiles("inferflux_step_seconds", where=_MODEL), "s"),
    Panel("Sequences in a step", _quantiles("inferflux_batch_size", where=_MODEL)),
    Panel("Sequences running", _fleet("inferflux_num_requests_running", "worker, model", _WORKER_OF_MODEL)),
    Panel("Slots free", _fleet("inferflux_num_free_slots", "worker, model", _WORKER_OF_MODEL)),
    Panel(
        "Prompt tokens found in the prefix cache",
        {
            "{{model}}": f"sum by (model) (rate(inferflux_prefix_cache_hits_total{_MODEL}[$__rate_interval]))"
            f" / sum by (model) (rate(inferflux_prefix_cache_queries_total{_MODEL}[$__rate_interval]))"
        },
        "percentunit",
    ),
    Panel("Attempts by how they ended", _rate("inferflux_worker_requests_total", "model, outcome", _MODEL), "reqps"),
    Panel("Answers by finish reason", _rate("inferflux_request_success_total", "finished_reason", _MODEL), "reqps"),
    Panel(
        "Tokens: generated and relayed",
        {
            "generated": f"sum(rate(inferflux_generation_tokens_total{_MODEL}[$__rate_interval]))",
            "relayed": f"sum(rate(inferflux_stream_tokens_total{_MODEL}[$__rate_interval]))",
        },
        "cps",
    ),
    Panel("Sequences that gave up their pages", _rate("inferflux_num_preemptions_total", "model", _MODEL)),
]
TENANT = [
    Panel("Prompts stored", _fleet("inferflux_queue_depth", "tenant, model, service_class", _TENANT)),
    Panel("Prompts stored by class", _fleet("inferflux_queue_depth", "service_class", _TENANT)),
    Panel(
        "Share of what is stored",
        {
            "{{tenant}}": f"max by (tenant) (sum by (instance, tenant) (inferflux_queue_depth{_TENANT}))"
            " / scalar(max(sum by (instance) (inferflux_queue_depth)))"
        },
        "percentunit",
    ),
    Panel("Refused by a limit", _rate("inferflux_limit_refusals_total", "code"), "reqps"),
    Panel("Refused keys", _rate("inferflux_http_requests_total", "status", '{status=~"401|403"}'), "reqps"),
    Panel("Dead letters", {"letters": "max(inferflux_dead_letters)"}),
]
BROKER = [
    Panel("Tape in use", {"share": "max(inferflux_tape_fill)"}, "percentunit"),
    Panel("Prompts stored", {"prompts": "max(sum by (instance) (inferflux_queue_depth))"}),
    Panel("Lanes that hold prompts", {"lanes": "max(count by (instance) (inferflux_queue_depth))"}),
    Panel("Dead letters", {"letters": "max(inferflux_dead_letters)"}),
    Panel("Ended because nobody pulled", _rate("inferflux_swept_total", "model, code"), "reqps"),
    Panel("Leases lost", _rate("inferflux_worker_requests_total", "model", '{outcome="lost"}'), "reqps"),
    Panel("Streams open", {"{{instance}}": "sum by (instance) (inferflux_streams_open)"}),
    Panel("Processes that answer", {"{{job}} {{instance}}": "up"}),
    Panel("Lines of the audit log", {"{{instance}}": "rate(inferflux_audit_lines_total[$__rate_interval])"}),
]
DASHBOARDS: dict[str, tuple[str, list[Panel], list[str]]] = {
    "fleet": ("InferFlux: fleet", FLEET, []),
    "model": ("InferFlux: model", MODEL, ["model"]),
    "tenant": ("InferFlux: tenant", TENANT, ["tenant"]),
    "broker": ("InferFlux: broker", BROKER, []),
}


def dashboard(name: str) -> dict[str, Any]:
    """One dashboard in Grafana's own terms."""
    title, panels, variables = DASHBOARDS[name]
    return {
        "uid": f"inferflux-{name}",
        "title": title,
        "tags": ["inferflux"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_variable(each) for each in variables]},
        "links": [{"type": "dashboards", "tags": ["inferflux"], "title": "InferFlux", "asDropdown": True}],
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _variable(label: str) -> dict[str, Any]:
    return {
        "name": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "query": f"label_values(inferflux_queue_depth, {label})" if label == "tenant" else "label_values(model)",
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    across = 24 // WIDTH
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "gridPos": {"x": WIDTH * (number % across), "y": HEIGHT * (number // across), "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def main() -> None:
    folder = Path(__file__).parent
    for name in DASHBOARDS:
        (folder / f"{name}.json").write_text(json.dumps(dashboard(name), indent=2) + "\n")


if __name__ == "__main__":
    main()
