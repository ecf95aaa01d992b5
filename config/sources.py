"""The three places settings come from, each read into `Given` values by dotted path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import inspect

from .errors import ConfigError
from .knobs import BY_ENV, ENV_PREFIX, KNOBS, SECTIONS, Knob, describe, inner_type, is_setting, suggest


class Given(msgspec.Struct, frozen=True):
    """One value as it was written, and where: `file:line`, `env NAME` or `flag`."""

    value: Any
    origin: str


def from_file(path: Path) -> dict[str, Given]:
    """Values of a YAML settings file. Raises ConfigError with file and line for what is no setting."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start})") from None
    return from_yaml(text, str(path))


def from_yaml(text: str, name: str) -> dict[str, Given]:
    """Values of a YAML settings text; `name` stands for its file in messages and origins."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return {}
        return dict(_leaves(root, "", name, lambda node: loader.construct_object(node, deep=True)))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
    finally:
        loader.dispose()


def from_environ(environ: Mapping[str, str]) -> dict[str, Given]:
    """Values of the `INFERFLUX_*` variables. Raises ConfigError for one that names no setting."""
    given = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or not is_setting(name):
            continue
        knob = BY_ENV.get(name)
        if knob is None:
            raise ConfigError(f"environment: {name} is no setting{suggest(name, BY_ENV)}")
        given[knob.path] = Given(parse_text(knob, environ[name], name), f"env {name}")
    return given


def from_flags(flags: Mapping[str, Any]) -> dict[str, Given]:
    """Values of flags by dotted path; text is read as in an environment variable."""
    given = {}
    for path, value in flags.items():
        knob = KNOBS.get(path)
        if knob is None:
            raise ConfigError(f"flag: {path} is no setting{suggest(path, KNOBS)}")
        given[path] = Given(parse_text(knob, value, "flag") if isinstance(value, str) else value, "flag")
    return given


def parse_text(knob: Knob, text: str, where: str) -> Any:
    """A value written as one line of text: strings as they are, lists as YAML or joined by commas.

    An empty text is no value: None for an optional setting, an empty list for a list.
    """
    info = inner_type(knob)
    kinds = info.types if isinstance(info, inspect.UnionType) else (info,)
    if not text and any(isinstance(kind, inspect.NoneType) for kind in kinds):
        return None
    if any(isinstance(kind, inspect.StrType) for kind in kinds):
        return text
    if isinstance(info, inspect.VarTupleType) and not text.lstrip().startswith(("[", "- ")):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return float(text) if isinstance(info, inspect.FloatType) else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        raise ConfigError(f"{where}: {knob.path} must be {describe(info)}") from None


def _leaves(
    node: yaml.Node, prefix: str, name: str, construct: Callable[[yaml.Node], Any]
) -> Iterator[tuple[str, Given]]:
    if not isinstance(node, yaml.MappingNode):
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
            return
        what = f"{prefix[:-1]} must be" if prefix else "the settings file must be"
        raise ConfigError(f"{name}:{node.start_mark.line + 1}: {what} a mapping of keys to values")
    seen = set()
    for key_node, value_node in node.value:
        where = f"{name}:{key_node.start_mark.line + 1}"
        path = f"{prefix}{construct(key_node)}"
        if path in seen:
            raise ConfigError(f"{where}: {path} is given twice in this file")
        seen.add(path)
        if path in SECTIONS:
            yield from _leaves(value_node, path + ".", name, construct)
        elif path in KNOBS:
            yield path, Given(construct(value_node), where)
        else:
            raise ConfigError(f"{where}: {path} is no setting{suggest(path, KNOBS.keys() | SECTIONS)}")
