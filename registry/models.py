"""Models: what the registry file and `INFERFLUX_MODEL_PATH` say is served, under which names, by which backend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta

from inferflux.broker.errors import ConfigError
from inferflux.broker.subjects import encode_token
from inferflux.config.settings import ModelSettings, Settings

BackendName = Literal["llamacpp", "torch", "stub"]

STUB_ID = "stub"
NO_MODEL = "no model is configured"

_UNKNOWN = re.compile(r"unknown field `(.*)`")


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry as it stands in the registry file."""

    id: Annotated[str, Meta(min_length=1)]
    path: str | None = None
    backend: Literal["auto", "llamacpp", "torch", "stub"] = "auto"
    default: bool = False
    aliases: tuple[Annotated[str, Meta(min_length=1)], ...] = ()
    context_length: Annotated[int, Meta(ge=1)] | None = None


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One model, resolved. `stub_reason` is set where the stub stands in for a model that could not be had."""

    id: str
    path: Path | None
    backend: BackendName
    default: bool = False
    aliases: tuple[str, ...] = ()
    context_length: int | None = None
    stub_reason: str | None = None


class Models:
    """All entries, in the registry's order; never empty."""

    def __init__(self, entries: Iterable[ModelEntry]) -> None:
        self.entries: tuple[ModelEntry, ...] = tuple(entries)
        self._by_name = {name: entry for entry in self.entries for name in (entry.id, *entry.aliases)}
        self._default = next((entry for entry in self.entries if entry.default), None)
        if self._default is None and len(self.entries) == 1:
            self._default = self.entries[0]

    def __iter__(self) -> Iterator[ModelEntry]:
        return iter(self.entries)

    def resolve(self, name: str | None) -> ModelEntry | None:
        """The entry of an id or alias; without a name the default, where there is one."""
        return self._default if name is None else self._by_name.get(name)


def load_models(settings: Settings) -> Models:
    """Read the registry file and add the model that the settings name, which then is the default.

    A missing file is an empty registry. Raises ConfigError naming file, entry, field and fix.
    """
    path = Path(settings.registry.path)
    entries = _read(path) if path.exists() else []
    chosen = _chosen(settings.model)
    if chosen is not None:
        others = [msgspec.structs.replace(entry, default=False) for entry in entries if entry.id != chosen.id]
        entries = [chosen, *others]
    if not entries:
        entries = [ModelEntry(id=STUB_ID, path=None, backend="stub", default=True, stub_reason=NO_MODEL)]
    _check_names(entries, str(path))
    return Models(entries)


def _chosen(model: ModelSettings) -> ModelEntry | None:
    if model.path is None and model.id is None and model.backend == "auto":
        return None
    path = None if model.path is None else Path(model.path).expanduser()
    ident = model.id or (STUB_ID if path is None else path.stem if path.suffix == ".gguf" else path.name)
    return _resolved(ModelSpec(id=ident, backend=model.backend, default=True), path)


def _read(path: Path) -> list[ModelEntry]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: is not valid YAML: {getattr(error, 'problem', error)}") from None
    match content:
        case None:
            return []
        case {"models": list() | None as models, **others} if not others:
            return [
                _resolved(*_spec(entry, f"{path}: models[{number}]", path.parent))
                for number, entry in enumerate(models or ())
            ]
        case dict():
            unknown = next((str(key) for key in content if key != "models"), "models")
            reason = "must be a list" if unknown == "models" else "is not known here; did you mean 'models'?"
            raise ConfigError(f"{path}: {unknown}: {reason}")
        case _:
            raise ConfigError(f"{path}: must be a mapping with the key 'models', which holds a list")


def _spec(entry: Any, where: str, folder: Path) -> tuple[ModelSpec, Path | None]:
    try:
        spec = msgspec.convert(entry, ModelSpec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}{_explain(str(error), entry)}") from None
    return spec, None if spec.path is None else folder / Path(spec.path).expanduser()


def _explain(text: str, entry: Any) -> str:
    message, _, path = text.partition(" - at `$")
    name = f" ({entry['id']})" if isinstance(entry, dict) and isinstance(entry.get("id"), str) else ""
    unknown = _UNKNOWN.search(message)
    if unknown is None:
        return f"{path.removesuffix('`')}{name}: {message[:1].lower()}{message[1:]}"
    known = ModelSpec.__struct_fields__
    near: Sequence[str] = difflib.get_close_matches(unknown[1], known, 1)
    return f".{unknown[1]}{name}: is not known; " + (
        f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    )


def _resolved(spec: ModelSpec, path: Path | None) -> ModelEntry:
    backend, reason = _backend(spec.backend, path)
    return ModelEntry(
        id=spec.id,
        path=path,
        backend=backend,
        default=spec.default,
        aliases=spec.aliases,
        context_length=spec.context_length,
        stub_reason=reason,
    )


def _backend(wanted: str, path: Path | None) -> tuple[BackendName, str | None]:
    if wanted == "stub":
        return "stub", None
    if path is None:
        return "stub", "its registry entry has no path"
    if not path.exists():
        return "stub", f"the model file {path.name} is missing"
    if wanted == "torch" or (wanted == "auto" and path.is_dir()):
        return "torch", None
    return "llamacpp", None


def _check_names(entries: Sequence[ModelEntry], where: str) -> None:
    owners: dict[str, str] = {}
    for entry in entries:
        for name in (entry.id, *entry.aliases):
            try:
                encode_token(name)
            except ValueError as error:
                raise ConfigError(f"{where}: model {entry.id[:60]!r}: {error}") from None
            if name in owners:
                raise ConfigError(f"{where}: the name {name!r} belongs to both {owners[name]!r} and {entry.id!r}")
            owners[name] = entry.id
    defaults = [entry.id for entry in entries if entry.default]
    if len(defaults) > 1:
        raise ConfigError(f"{where}: more than one default model: {', '.join(defaults)}; keep one")
