"""GET /v1/admin/...: the fleet and this replica, for operators, `inferctl status` and `inferctl fleet`."""

from __future__ import annotations

import time

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency
from prometheus_client import generate_latest

from inferflux.broker.wire.fleet import WorkerBeat
from inferflux.registry.fleet import Fleet

from ..status import Status
from .health import EXPOSITION


@get("/workers", opt={"scope": "admin"})
async def list_workers(fleet: NamedDependency[Fleet]) -> Response[bytes]:
    """Every live worker's last heartbeat, and how many seconds ago it was sent."""
    return _respond({"object": "list", "data": [_full(beat) for beat in fleet.workers()]})


@get("/status", opt={"scope": "admin"})
async def get_status(status: NamedDependency[Status]) -> Response[bytes]:
    """This replica: memory, streams, and its checks."""
    return _respond(status.report())


@get("/metrics", opt={"scope": "admin"})
async def get_metrics(status: NamedDependency[Status]) -> Response[bytes]:
    """What /metrics of this replica says, for operators who come through a proxy that keeps /metrics to itself; a
    header names the replica, because there another one may answer next."""
    await status.refresh_metrics()
    headers = {"x-inferflux-replica": status.replica}
    return Response(generate_latest(status.registry), media_type=EXPOSITION, headers=headers)


def _full(beat: WorkerBeat) -> dict[str, object]:
    """On the wire a beat leaves out defaults; people who read this should not have to know them."""
    age_s = round(max(0.0, time.time() - beat.at), 1)
    models = [msgspec.structs.asdict(model) for model in beat.models]
    return msgspec.structs.asdict(beat) | {"age_s": age_s, "models": models}


def _respond(answer: object) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type="application/json")
