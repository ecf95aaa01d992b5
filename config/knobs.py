"""Every setting by its dotted path: its type, its environment variable, and how to say what it expects."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import inspect

from .settings import Section, Settings

ENV_PREFIX = "INFERFLUX_"

# Variables that other parts of InferFlux read themselves; a name that ends in `_` stands for a family.
NOT_SETTINGS = (
    "INFERFLUX_CACHE_DIR",
    "INFERFLUX_DIST_",
    "INFERFLUX_POLICY_NEW_PASSPHRASE",
    "INFERFLUX_POLICY_PASSPHRASE",
    "INFERFLUX_SUPERVISED",
    "INFERFLUX_TEST_",
)

SECRETS = frozenset({"broker.password", "broker.stamp_secret", "broker.seal_secret"})
SECRET_FIELDS = frozenset({"key"})


class Knob(msgspec.Struct, frozen=True):
    """One setting; lists of sections (`auth.api_keys`, `tenants`) are one knob each."""

    path: str
    type: Any
    default: Any

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.path.replace(".", "_").upper()


def _walk(section: type[Section], prefix: str) -> Iterator[Knob]:
    for field in msgspec.structs.fields(section):
        path = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, Section):
            yield from _walk(field.type, path + ".")
        else:
            yield Knob(path, field.type, field.default)


KNOBS: dict[str, Knob] = {knob.path: knob for knob in _walk(Settings, "")}
BY_ENV: dict[str, Knob] = {knob.env: knob for knob in KNOBS.values()}
SECTIONS = frozenset(path[:at] for path in KNOBS for at, char in enumerate(path) if char == ".")


def is_setting(env_name: str) -> bool:
    """False for the variables that are InferFlux's but no settings."""
    return not any(env_name == name or (name.endswith("_") and env_name.startswith(name)) for name in NOT_SETTINGS)


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the nearest known name, or the names themselves where none is near and few exist."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not near:
        leaf = name.rpartition(".")[2]
        near = [each for each in names if each.rpartition(".")[2] == leaf][:1]
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known here: {', '.join(names)}" if len(names) <= 12 else ""


def inner_type(knob: Knob, steps: Iterable[str | int] = ()) -> inspect.Type:
    """The type of a knob's value, or the one at a path inside it, such as `(0, "scopes", 1)` in `auth.api_keys`."""
    info = inspect.type_info(knob.type)
    for step in steps:
        if isinstance(info, inspect.UnionType):
            info = next(each for each in info.types if not isinstance(each, inspect.NoneType))
        if isinstance(info, inspect.VarTupleType):
            info = info.item_type
        elif isinstance(info, inspect.StructType):
            info = next(field.type for field in info.fields if field.name == step)
    return info


def describe(info: inspect.Type) -> str:
    """What a value of this type looks like, for people: `a number, at least 0`."""
    match info:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number" + _bounds(info)
        case inspect.FloatType():
            return "a number" + _bounds(info)
        case inspect.StrType():
            return "a string (in quotes where YAML would read something else)"
        case inspect.LiteralType():
            return "one of " + ", ".join(str(value) for value in info.values)
        case inspect.NoneType():
            return "nothing"
        case inspect.VarTupleType(item_type=inspect.StructType()):
            return "a list of mappings"
        case inspect.VarTupleType():
            return f"a list, each item {describe(info.item_type)}"
        case inspect.StructType():
            return "a mapping with " + ", ".join(
                field.name + (" (required)" if field.required else "") for field in info.fields
            )
        case inspect.UnionType():
            return " or ".join(describe(each) for each in info.types)
        case _:
            return str(info)


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    bounds = (("at least", info.ge), ("more than", info.gt), ("at most", info.le), ("less than", info.lt))
    said = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
    return ", " + " and ".join(said) if said else ""
