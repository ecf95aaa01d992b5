"""What workers tell: that they are alive, what they have served, and prompts that they offer to each other."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from .base import Wire

Hardware: TypeAlias = Literal["cpu", "gpu"]


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


_beat_decoder = msgspec.json.Decoder(WorkerBeat)
_gossip_decoder = msgspec.json.Decoder(Gossip)
_forward_decoder = msgspec.json.Decoder(Forward)


def decode_beat(body: bytes) -> WorkerBeat:
    return _beat_decoder.decode(body)


def decode_gossip(body: bytes) -> Gossip:
    return _gossip_decoder.decode(body)


def decode_forward(body: bytes) -> Forward:
    return _forward_decoder.decode(body)
