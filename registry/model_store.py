"""The store of models: one document in KV that operators and registry files amend, and that every process follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from inferflux.broker.subjects import BUCKET_REGISTRY, KEY_MODELS
from inferflux.broker.wire.policies import ModelRegistry
from inferflux.config.logs import get_logger
from inferflux.config.metrics import ApiMetrics

from .models import ModelEntry, Models, entries_of
from .store import Document, Follower, PolicyStore

log = get_logger("registry.models")

Amendment = Callable[[ModelRegistry], ModelRegistry]


def models_document(store: PolicyStore) -> Document[ModelRegistry]:
    return Document(store, BUCKET_REGISTRY, KEY_MODELS, ModelRegistry())


class ModelStore:
    """Reads and amends the document. Every call may raise BrokerError."""

    def __init__(self, store: PolicyStore) -> None:
        self._document = models_document(store)

    async def read(self) -> ModelRegistry:
        return (await self._document.read())[0]

    async def amend(self, amendment: Amendment, *, dry_run: bool = False) -> ModelRegistry:
        """The registry as amended; stored unless this is a dry run. Raises what the amendment raises."""
        if dry_run:
            return amendment(await self.read())
        return await self._document.change(amendment)


class ModelsFollower:
    """Carries every change into the models of one API replica, and tells what changed."""

    def __init__(self, models: Models, metrics: ApiMetrics) -> None:
        self._models = models
        self._metrics = metrics

    def follow(self, follower: Follower, store: PolicyStore) -> None:
        follower.follow(models_document(store), self._apply)

    def _apply(self, registry: ModelRegistry) -> None:
        before = {entry.id: entry for entry in self._models}
        entries = entries_of(registry)
        self._models.replace(entries)
        for event, entry in differences(before.values(), entries):
            self._metrics.registry_events.labels(event).inc()
            log.info(f"model {event}", model=entry.id, owner=entry.owner, backend=entry.backend, aliases=entry.aliases)
        self._metrics.registry_models.set(len(entries))


def differences(before: Iterable[ModelEntry], after: Iterable[ModelEntry]) -> list[tuple[str, ModelEntry]]:
    """What happened from one state of the models to another: `added`, `removed`, `changed`, `default`."""
    old, new = ({entry.id: entry for entry in entries} for entries in (before, after))
    events = [("added", entry) for name, entry in new.items() if name not in old]
    events += [("removed", entry) for name, entry in old.items() if name not in new]
    for name in old.keys() & new.keys():
        was, now = old[name], new[name]
        if now.default and not was.default:
            events.append(("default", now))
        if (was.digest, was.aliases, was.hardware) != (now.digest, now.aliases, now.hardware):
            events.append(("changed", now))
    return events
