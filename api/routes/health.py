"""GET and HEAD of /livez, /readyz, /healthz and /metrics: open to everybody who can reach the port."""

from __future__ import annotations

import msgspec
from litestar import HttpMethod, Response, route
from litestar.di import NamedDependency
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from inferflux.registry.fleet import Fleet

from ..gateway import Gateway
from ..model_states import overall
from ..status import Status

EXPOSITION = CONTENT_TYPE_LATEST.removesuffix("; charset=utf-8")
"""Litestar names the charset itself."""

READS = (HttpMethod.GET, HttpMethod.HEAD)
"""Who looks after processes often asks for the status alone."""


@route("/livez", http_method=READS)
async def livez() -> Response[bytes]:
    """Whether the process answers at all."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@route(["/readyz", "/healthz"], http_method=READS)
async def readyz(
    status: NamedDependency[Status], gateway: NamedDependency[Gateway], fleet: NamedDependency[Fleet]
) -> Response[bytes]:
    """Whether new requests are accepted, with each check by name; notes and the models' states do not count."""
    checks = status.checks()
    ready = all(checks.values())
    body = msgspec.json.encode(
        {
            "status": "ok" if ready else "unavailable",
            "checks": checks,
            "notes": status.notes(),
            "models": {entry.id: overall(fleet.models(entry.id)) for entry in gateway.models},
        }
    )
    return Response(body, status_code=200 if ready else 503, media_type="application/json")


@route("/metrics", http_method=READS)
async def metrics(status: NamedDependency[Status]) -> Response[bytes]:
    """Prometheus text: this replica's counters, the queues, and the fleet from its heartbeats."""
    await status.refresh_metrics()
    return Response(generate_latest(status.registry), media_type=EXPOSITION)
