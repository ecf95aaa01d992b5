"""The states of models: what the registry wants, beside what each worker says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from inferflux.broker.wire.fleet import ModelBeat, WorkerBeat
from inferflux.broker.wire.policies import ModelChange, ModelRegistry
from inferflux.registry.fleet import Fleet
from inferflux.registry.models import BOUNDS, ModelEntry, entries_of

State = Literal["ready", "loading", "failed", "unloading", "no_worker"]


class WorkerState(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one worker. `current` says whether it serves what the registry says now."""

    worker: str
    host: str
    state: Literal["loading", "ready", "unloading", "failed"]
    reason: str | None
    progress: float
    current: bool
    backend: str
    hardware: str
    num_slots: int
    num_running: int
    num_pages: int
    num_pages_used: int


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """One model. `owner` is who may take it away: the registry `file`, or operators (`admin`); null while a model that
    is gone still ends what it runs. `changed` names what operators changed while the fleet runs."""

    id: str
    owner: Literal["file", "admin"] | None
    state: State
    path: str | None = None
    backend: str | None = None
    default: bool = False
    aliases: tuple[str, ...] = ()
    hardware: str | None = None
    context_length: int | None = None
    max_batch_size: int | None = None
    max_batch_tokens: int | None = None
    chunked_prefill_tokens: int | None = None
    stub_reason: str | None = None
    changed: tuple[str, ...] = ()
    workers: tuple[WorkerState, ...] = ()


def model_states(registry: ModelRegistry, fleet: Fleet) -> list[ModelState]:
    """Every model of the registry in its order, then those that workers have left over."""
    entries = entries_of(registry)
    states = [_state(entry, registry.changes.get(entry.id, ModelChange()), fleet) for entry in entries]
    named = {entry.id for entry in entries}
    left = {beat.id for worker in fleet.workers() for beat in worker.models} - named
    for model in sorted(left):
        workers = _workers(model, None, fleet)
        states.append(ModelState(id=model, owner=None, state="unloading", workers=workers))
    return states


def overall(beats: Sequence[WorkerState] | Sequence[ModelBeat]) -> State:
    """A model's state is the best that any worker has of it."""
    ranked: tuple[State, ...] = ("ready", "loading", "failed", "unloading")
    return next((state for state in ranked if any(beat.state == state for beat in beats)), "no_worker")


def _state(entry: ModelEntry, change: ModelChange, fleet: Fleet) -> ModelState:
    workers = _workers(entry.id, entry.digest, fleet)
    return ModelState(
        id=entry.id,
        owner=entry.owner,
        state=overall(workers),
        path=None if entry.path is None else str(entry.path),
        backend=entry.backend,
        default=entry.default,
        aliases=entry.aliases,
        hardware=entry.hardware,
        **{name: getattr(entry, name) for name in ("context_length", *BOUNDS)},
        stub_reason=entry.stub_reason,
        changed=tuple(name for name, value in msgspec.structs.asdict(change).items() if value),
        workers=workers,
    )


def _workers(model: str, digest: str | None, fleet: Fleet) -> tuple[WorkerState, ...]:
    return tuple(
        _worker(worker, beat, digest) for worker in fleet.workers() for beat in worker.models if beat.id == model
    )


def _worker(worker: WorkerBeat, beat: ModelBeat, digest: str | None) -> WorkerState:
    return WorkerState(
        worker=worker.worker,
        host=worker.host,
        state=beat.state,
        reason=beat.reason,
        progress=beat.progress,
        current=beat.digest == digest,
        backend=beat.backend,
        hardware=worker.hardware,
        num_slots=beat.num_slots,
        num_running=beat.num_running,
        num_pages=beat.num_pages,
        num_pages_used=beat.num_pages_used,
    )
