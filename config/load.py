"""Settings from file, environment and flags, in that rising order, each value with where it came from.

Relative paths in settings are relative to the working directory. One exception: the registry that the shipped
`server.yaml` names is found in the same installation, wherever that is.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from .errors import ConfigError
from .knobs import KNOBS, SECRET_FIELDS, SECRETS, Knob, describe, inner_type, suggest
from .settings import Settings
from .sources import Given, from_environ, from_file, from_flags

SHIPPED = Path(__file__).resolve().parent / "server.yaml"
USUAL = Path("config/server.yaml")
MASK = "********"

_STEP = re.compile(r"\[(\d+|\.\.\.)\]|\.(\w+)")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class Loaded(msgspec.Struct, frozen=True):
    """Settings, and for each dotted path its origin: `default`, `file:line`, `env NAME` or `flag`."""

    settings: Settings
    origins: Mapping[str, str]
    path: Path | None = None


def load(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Merge a settings file, `INFERFLUX_*` variables and flags. Raises ConfigError naming place, key and fix."""
    given = {} if path is None else from_file(path)
    if path is not None and path.resolve() == SHIPPED and "registry.path" in given:
        registry = given["registry.path"]
        given["registry.path"] = Given(str(SHIPPED.parent.parent / str(registry.value)), registry.origin)
    given |= from_environ(environ) | from_flags(overrides or {})
    tree: dict[str, Any] = {}
    for knob_path, value in given.items():
        *sections, leaf = knob_path.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[leaf] = _convert(KNOBS[knob_path], value)
    settings = msgspec.convert(tree, Settings)
    _check_tls(settings, given)
    return Loaded(settings, {each: given[each].origin if each in given else "default" for each in KNOBS}, path)


def find(path: Path | None) -> Path:
    """The settings file to use: the given one, else config/server.yaml here, else the shipped one."""
    return path or (USUAL if USUAL.is_file() else SHIPPED)


def load_for_process(argv: Sequence[str], environ: Mapping[str, str], program: str) -> Loaded:
    """Settings of a serving process from `[--config FILE] [--set section.key=value]...`. Raises ConfigError."""
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--config", type=Path, default=None, metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args(argv)
    return load(find(arguments.config), environ, parse_assignments(arguments.set))


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """`section.key=value` flags as a mapping. Raises ConfigError for one without `=`."""
    flags = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {path!r}: write it as section.key=value")
        flags[path.strip()] = value
    return flags


def shown(loaded: Loaded) -> list[tuple[str, Any, str]]:
    """(dotted path, value with secrets masked, origin) of every setting."""
    rows = []
    for path, origin in loaded.origins.items():
        value: Any = loaded.settings
        for step in path.split("."):
            value = getattr(value, step)
        rows.append((path, MASK if path in SECRETS and value else mask(msgspec.to_builtins(value)), origin))
    return rows


def mask(value: Any) -> Any:
    """The value without secret fields and without passwords inside URLs."""
    match value:
        case dict():
            return {key: MASK if key in SECRET_FIELDS else mask(each) for key, each in value.items()}
        case list() | tuple():
            return [mask(each) for each in value]
        case str():
            return _USERINFO.sub(MASK, value)
        case _:
            return value


def _convert(knob: Knob, given: Given) -> Any:
    try:
        return msgspec.convert(given.value, knob.type)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{given.origin}: {_explain(knob, str(error), given.value)}") from None


def _explain(knob: Knob, message: str, value: Any) -> str:
    message, _, inside = message.partition(" - at `$")
    steps = [step[1] or int(step[0]) for step in _STEP.findall(inside)]
    where = knob.path + inside.rstrip("`")
    wanted = inner_type(knob, steps)
    unknown = re.search(r"unknown field `(.*)`", message)
    if unknown and isinstance(wanted, inspect.StructType):
        fields = [field.name for field in wanted.fields]
        return f"{where}.{unknown[1]} is no setting{suggest(unknown[1], fields)}"
    missing = re.search(r"missing required field `(.*)`", message)
    if missing:
        return f"{where} needs the field {missing[1]}"
    for step in steps:
        value = value[step]
    secret = knob.path in SECRETS or (steps and steps[-1] in SECRET_FIELDS)
    return f"{where} must be {describe(wanted)}, not {'that' if secret else _kind(value)}"


def _kind(value: Any) -> str:
    # Texts may hold passwords, so they are never repeated.
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case None:
            return "empty"
        case str():
            return "a text"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return f"a {type(value).__name__}"


def _check_tls(settings: Settings, given: Mapping[str, Given]) -> None:
    for section, owner in (("server", settings.server), ("broker", settings.broker)):
        if (owner.tls_cert is None) != (owner.tls_key is None):
            has, lacks = ("tls_cert", "tls_key") if owner.tls_cert else ("tls_key", "tls_cert")
            raise ConfigError(f"{given[f'{section}.{has}'].origin}: {section}.{has} also needs {section}.{lacks}")
