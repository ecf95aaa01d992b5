"""The listing: what the registry file says, read and checked whole."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from inferflux.broker.errors import ConfigError
from inferflux.broker.subjects import encode_token
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.policies import ModelRecord
from inferflux.config.settings import ModelSettings, Settings

from .download import DownloadFailed, url_of

STUB_ID = "stub"

_UNKNOWN = re.compile(r"unknown field `(.*)`")


class ModelSpec(ModelRecord, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry as it stands in the registry file. A relative path is relative to the file."""

    default: bool = False


class Listing(msgspec.Struct, frozen=True):
    """The models of a registry file, the settings' own among them, with absolute paths."""

    records: tuple[ModelRecord, ...] = ()
    default: str | None = None

    @property
    def digest(self) -> str:
        """Of what is said, not of how it is written."""
        digest = hashlib.sha256(f"{self.default or ''}\n".encode())
        for record in self.records:
            digest.update(encode(record) + b"\n")
        return digest.hexdigest()


def read_listing(settings: Settings) -> Listing:
    """Read the registry file and add the model that the settings name, which then is the default.

    A missing file is an empty one. Raises ConfigError naming file, entry, field and fix.
    """
    path = Path(settings.registry.path)
    specs = _read(path) if path.exists() else []
    chosen = own_record(settings.model)
    default = next((spec.id for spec in specs if spec.default), None)
    records = [_record(spec) for spec in specs]
    if chosen is not None:
        records = [chosen, *(record for record in records if record.id != chosen.id)]
        default = chosen.id
    check_names(records, str(path))
    return Listing(tuple(records), default)


def own_record(model: ModelSettings) -> ModelRecord | None:
    """The one model that the settings name, if any."""
    if model.path is None and model.id is None and model.backend == "auto":
        return None
    path = None if model.path is None else Path(model.path).expanduser()
    ident = model.id or (STUB_ID if path is None else path.stem if path.suffix == ".gguf" else path.name)
    return ModelRecord(id=ident, path=None if path is None else str(path.absolute()), backend=model.backend)


def check_names(records: Iterable[ModelRecord], where: str) -> None:
    """Raises ConfigError when two models share an id or alias, or one cannot be part of a subject."""
    owners: dict[str, str] = {}
    for record in records:
        for name in (record.id, *record.aliases):
            try:
                encode_token(name)
            except ValueError as error:
                raise ConfigError(f"{where}: model {record.id[:60]!r}: {error}") from None
            if name in owners:
                raise ConfigError(f"{where}: the name {name!r} belongs to both {owners[name]!r} and {record.id!r}")
            owners[name] = record.id


def _record(spec: ModelSpec) -> ModelRecord:
    return ModelRecord(**{name: getattr(spec, name) for name in ModelRecord.__struct_fields__})


def _read(path: Path) -> list[ModelSpec]:
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
            specs = [
                _spec(entry, f"{path}: models[{number}]", path.parent) for number, entry in enumerate(models or ())
            ]
        case dict():
            unknown = next((str(key) for key in content if key != "models"), "models")
            reason = "must be a list" if unknown == "models" else "is not known here; did you mean 'models'?"
            raise ConfigError(f"{path}: {unknown}: {reason}")
        case _:
            raise ConfigError(f"{path}: must be a mapping with the key 'models', which holds a list")
    defaults = [spec.id for spec in specs if spec.default]
    if len(defaults) > 1:
        raise ConfigError(f"{path}: more than one default model: {', '.join(defaults)}; keep one")
    return specs


def _spec(entry: Any, where: str, folder: Path) -> ModelSpec:
    try:
        spec = msgspec.convert(entry, ModelSpec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}{_explain(str(error), entry)}") from None
    if spec.source is not None:
        _check_source(spec, where)
    if spec.path is None:
        return spec
    path = (folder / Path(spec.path).expanduser()).absolute()
    return msgspec.structs.replace(spec, path=str(path))


def _check_source(spec: ModelSpec, where: str) -> None:
    try:
        url = url_of(spec.source or "")
    except DownloadFailed as error:
        raise ConfigError(f"{where}.source ({spec.id}): {error}") from None
    if url is None:
        raise ConfigError(f"{where}.source ({spec.id}): must be a URL or hf:ORG/REPO/FILE")
    if spec.path is None:
        raise ConfigError(f"{where}.path ({spec.id}): is needed beside 'source': it says where to put the file")


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
