"""Models: what is served, under which names, by which backend, as of the newest registry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from inferflux.broker.wire.base import encode
from inferflux.broker.wire.policies import ModelChange, ModelRecord, ModelRegistry
from inferflux.config.settings import Settings

from .listing import STUB_ID, Listing, own_record, read_listing

BackendName = Literal["llamacpp", "torch", "stub"]
Owner = Literal["file", "admin"]

NO_MODEL = "no model is configured"
BOUNDS = ("max_batch_size", "max_batch_tokens", "chunked_prefill_tokens")
"""Limits of a model that change while its engine runs."""


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One model, resolved. `stub_reason` is set where the stub stands in for a model that could not be had.

    `owner` says who may take it away, `digest` changes with everything that concerns an engine.
    """

    id: str
    path: Path | None
    source: str | None = None
    backend: BackendName
    default: bool = False
    aliases: tuple[str, ...] = ()
    hardware: Literal["any", "cpu", "gpu"] = "any"
    context_length: int | None = None
    max_batch_size: int | None = None
    max_batch_tokens: int | None = None
    chunked_prefill_tokens: int | None = None
    num_reloads: int = 0
    stub_reason: str | None = None
    owner: Owner = "file"
    digest: str = ""


class Models:
    """All entries, in the registry's order; never empty. `replace` changes them while others hold this object."""

    def __init__(self, entries: Iterable[ModelEntry]) -> None:
        self.replace(entries)

    def __iter__(self) -> Iterator[ModelEntry]:
        return iter(self.entries)

    def resolve(self, name: str | None) -> ModelEntry | None:
        """The entry of an id or alias; without a name the default, where there is one."""
        return self._default if name is None else self._by_name.get(name)

    def replace(self, entries: Iterable[ModelEntry]) -> None:
        """From now on these are the models."""
        self.entries: tuple[ModelEntry, ...] = tuple(entries)
        self._by_name = {alias: entry for entry in self.entries for alias in entry.aliases}
        self._by_name |= {entry.id: entry for entry in self.entries}
        self._default = next((entry for entry in self.entries if entry.default), None)
        if self._default is None and len(self.entries) == 1:
            self._default = self.entries[0]


def load_models(settings: Settings) -> Models:
    """What a fleet starts with: the registry file and the model that the settings name. Raises ConfigError."""
    return Models(entries_of(listed(ModelRegistry(), read_listing(settings))))


def own_entry(settings: Settings) -> ModelEntry | None:
    """The model that a process's own settings name."""
    record = own_record(settings.model)
    return None if record is None else _resolved(record, ModelChange(), "file", default=True)


def listed(registry: ModelRegistry, listing: Listing) -> ModelRegistry:
    """The registry with another file's models in place of the last one's."""
    return msgspec.structs.replace(registry, listed=listing.records, listed_default=listing.default)


def entries_of(registry: ModelRegistry) -> tuple[ModelEntry, ...]:
    """Every model of a registry as this machine sees it; the stub alone where there is none."""
    owners: list[tuple[ModelRecord, Owner]] = [(record, "file") for record in registry.listed]
    owners += [(record, "admin") for record in registry.loaded]
    default = default_of(registry)
    entries = tuple(
        _resolved(record, registry.changes.get(record.id, ModelChange()), owner, default=record.id == default)
        for record, owner in owners
    )
    return entries or (ModelEntry(id=STUB_ID, path=None, backend="stub", default=True, stub_reason=NO_MODEL),)


def default_of(registry: ModelRegistry) -> str | None:
    """The operators' choice, else the file's, as far as they exist."""
    ids = {record.id for record in (*registry.listed, *registry.loaded)}
    return next((name for name in (registry.default, registry.listed_default) if name in ids), None)


def _resolved(record: ModelRecord, change: ModelChange, owner: Owner, *, default: bool) -> ModelEntry:
    changed = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}
    path = None if record.path is None else Path(record.path)
    backend, reason = _backend(record, path, owner)
    fields = msgspec.structs.asdict(record) | changed | {"path": path, "backend": backend}
    digest = _digest(record, change)
    return ModelEntry(**fields, default=default, stub_reason=reason, owner=owner, digest=digest)


def _digest(record: ModelRecord, change: ModelChange) -> str:
    """Names do not concern an engine, nor which workers have one."""
    nameless = msgspec.structs.replace(record, aliases=(), hardware="any")
    said = encode(nameless) + encode(msgspec.structs.replace(change, aliases=None, hardware=None))
    return hashlib.sha256(said).hexdigest()[:12]


def _backend(record: ModelRecord, path: Path | None, owner: Owner) -> tuple[BackendName, str | None]:
    wanted = record.backend
    if wanted == "stub":
        return "stub", None
    if path is None:
        return "stub", "its registry entry has no path"
    if not path.exists() and owner == "file" and record.source is None:
        return "stub", f"the model file {path.name} is missing"
    if wanted == "torch" or (wanted == "auto" and path.is_dir()):
        return "torch", None
    return "llamacpp", None
