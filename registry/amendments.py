"""Amendments: what may be done to the registry of models, as functions from one registry to the next. Pure.

They raise RequestError for what must not be done, naming the field and the fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from inferflux.broker.errors import Code, ConfigError, RequestError
from inferflux.broker.wire.policies import FileMark, ModelChange, ModelRecord, ModelRegistry

from .listing import Listing, check_names
from .models import listed

MAX_MODELS = 200
"""The registry is one message, and each model has listeners on every worker."""


def apply_listing(registry: ModelRegistry, listing: Listing, mark: FileMark) -> ModelRegistry:
    """Another file's models; those that were loaded by operators stay. Raises ConfigError when both want one name."""
    wanted = msgspec.structs.replace(listed(registry, listing), file=mark)
    loaded = {record.id for record in wanted.loaded}
    for record in wanted.listed:
        if record.id in loaded:
            raise ConfigError(
                f"{mark.path}: the model {record.id!r} was loaded by an operator: unload it, or use another id here"
            )
    _check(wanted, mark.path)
    return _tidied(wanted)


def load(registry: ModelRegistry, record: ModelRecord, *, default: bool) -> ModelRegistry:
    """Add a model, or replace the one that was loaded under this id; the same once more makes its engine anew."""
    if any(each.id == record.id for each in registry.listed):
        raise _refused(f"the model {record.id!r} belongs to the registry file: change it there, or use another id")
    if record in registry.loaded:
        registry = reload(registry, record.id)
    others = tuple(each for each in registry.loaded if each.id != record.id)
    wanted = msgspec.structs.replace(
        registry, loaded=(*others, record), default=record.id if default else registry.default
    )
    return _checked(wanted)


def unload(registry: ModelRegistry, name: str) -> ModelRegistry:
    """Take a model away that an operator loaded."""
    record = _found(registry, name)
    if record not in registry.loaded:
        raise _refused(f"the model {record.id!r} belongs to the registry file: remove it there")
    rest = tuple(each for each in registry.loaded if each.id != record.id)
    return _tidied(msgspec.structs.replace(registry, loaded=rest))


def reload(registry: ModelRegistry, name: str) -> ModelRegistry:
    """Make a model's engine anew, after its file was replaced, or to try again what failed."""
    record = _found(registry, name)
    now = registry.changes.get(record.id, ModelChange())
    return _with_change(registry, record.id, msgspec.structs.replace(now, num_reloads=now.num_reloads + 1))


def set_default(registry: ModelRegistry, name: str | None) -> ModelRegistry:
    """Operators' choice of the default; None gives it back to the file and the settings."""
    chosen = None if name is None else _found(registry, name).id
    return msgspec.structs.replace(registry, default=chosen)


def change(registry: ModelRegistry, name: str, fields: Mapping[str, Any]) -> ModelRegistry:
    """Set fields of a model's `ModelChange`; None gives one back to the model's record."""
    record = _found(registry, name)
    now = registry.changes.get(record.id, ModelChange())
    return _checked(_with_change(registry, record.id, msgspec.structs.replace(now, **fields)))


def _with_change(registry: ModelRegistry, model: str, wanted: ModelChange) -> ModelRegistry:
    changes = {name: each for name, each in {**registry.changes, model: wanted}.items() if each != ModelChange()}
    return msgspec.structs.replace(registry, changes=changes)


def _found(registry: ModelRegistry, name: str) -> ModelRecord:
    records = (*registry.listed, *registry.loaded)
    for record in records:
        aliases = _change_of(registry, record).aliases
        if name == record.id or name in (record.aliases if aliases is None else aliases):
            return record
    known = ", ".join(record.id for record in records) or "none"
    raise RequestError(Code.MODEL_NOT_FOUND, f"the model {name[:200]!r} does not exist; known: {known}", param="model")


def _checked(registry: ModelRegistry) -> ModelRegistry:
    try:
        _check(registry, "the registry")
    except ConfigError as error:
        raise _refused(str(error)) from None
    return registry


def _check(registry: ModelRegistry, where: str) -> None:
    records = (*registry.listed, *registry.loaded)
    if len(records) > MAX_MODELS:
        raise ConfigError(f"{where}: {len(records)} models are too many, at most {MAX_MODELS}")
    named = []
    for record in records:
        aliases = _change_of(registry, record).aliases
        named.append(record if aliases is None else msgspec.structs.replace(record, aliases=aliases))
    check_names(named, where)


def _change_of(registry: ModelRegistry, record: ModelRecord) -> ModelChange:
    return registry.changes.get(record.id, ModelChange())


def _tidied(registry: ModelRegistry) -> ModelRegistry:
    """Without what is said of models that are gone."""
    ids = {record.id for record in (*registry.listed, *registry.loaded)}
    return msgspec.structs.replace(
        registry,
        default=registry.default if registry.default in ids else None,
        changes={name: each for name, each in registry.changes.items() if name in ids},
    )


def _refused(message: str) -> RequestError:
    return RequestError(Code.INVALID_REQUEST, message, param="id")
