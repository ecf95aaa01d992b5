"""What may be done to the registry of models, and what may not."""

from __future__ import annotations

import pytest

from inferflux.broker.errors import Code, ConfigError, RequestError
from inferflux.broker.wire.policies import FileMark, ModelChange, ModelRecord, ModelRegistry
from inferflux.registry import amendments
from inferflux.registry.listing import Listing
from inferflux.registry.models import ModelEntry, Models, default_of, entries_of

MARK = FileMark(path="registry.yaml", digest="1", replica="one", at=0.0)


def record(name: str, **fields: object) -> ModelRecord:
    return ModelRecord(id=name, backend="stub", **fields)  # type: ignore[arg-type]


def listed(*names: str, default: str | None = None) -> ModelRegistry:
    listing = Listing(tuple(record(name) for name in names), default)
    return amendments.apply_listing(ModelRegistry(), listing, MARK)


def entry(registry: ModelRegistry, name: str) -> ModelEntry:
    found = Models(entries_of(registry)).resolve(name)
    assert found is not None
    return found


def test_a_file_and_operators_each_keep_their_own() -> None:
    registry = amendments.load(listed("a"), record("b"), default=True)
    again = amendments.apply_listing(registry, Listing((record("c"),), "c"), MARK)

    assert [(each.id, each.owner) for each in entries_of(again)] == [("c", "file"), ("b", "admin")]
    assert default_of(again) == "b"
    assert [each.id for each in entries_of(amendments.unload(again, "b"))] == ["c"]


def test_unloading_the_default_gives_the_choice_back_to_the_file() -> None:
    registry = amendments.load(listed("a", default="a"), record("b"), default=True)

    assert default_of(registry) == "b"
    assert default_of(amendments.unload(registry, "b")) == "a"
    assert default_of(amendments.set_default(registry, None)) == "a"


def test_what_the_file_owns_is_not_loaded_or_unloaded() -> None:
    for refused in (
        lambda: amendments.load(listed("a"), record("a"), default=False),
        lambda: amendments.unload(listed("a"), "a"),
    ):
        with pytest.raises(RequestError, match="belongs to the registry file") as caught:
            refused()
        assert caught.value.code == Code.INVALID_REQUEST


def test_a_file_that_wants_what_an_operator_loaded_changes_nothing() -> None:
    registry = amendments.load(listed("a"), record("b"), default=False)
    with pytest.raises(ConfigError, match="'b' was loaded by an operator"):
        amendments.apply_listing(registry, Listing((record("b"),)), MARK)


def test_names_are_unique_over_ids_and_aliases_of_both() -> None:
    registry = amendments.change(listed("a"), "a", {"aliases": ("small",)})

    with pytest.raises(RequestError, match="'small' belongs to both"):
        amendments.load(registry, record("small"), default=False)
    with pytest.raises(RequestError, match="'b' belongs to both"):
        amendments.change(listed("a", "b"), "a", {"aliases": ("b",)})
    assert entry(registry, "small").id == "a"
    assert entry(amendments.change(registry, "small", {"aliases": None}), "a").aliases == ()


def test_an_unknown_model_is_named_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match="'x' does not exist; known: a, b") as caught:
        amendments.set_default(listed("a", "b"), "x")
    assert caught.value.code == Code.MODEL_NOT_FOUND


def test_names_and_hardware_need_no_new_engine_and_bounds_and_reloads_do_show() -> None:
    before = listed("a")
    digest = entry(before, "a").digest

    assert entry(amendments.change(before, "a", {"aliases": ("x",), "hardware": "gpu"}), "a").digest == digest
    assert entry(amendments.change(before, "a", {"max_batch_size": 4}), "a").digest != digest
    assert entry(amendments.reload(before, "a"), "a").digest != digest


def test_loading_the_same_again_makes_the_engine_anew() -> None:
    once = amendments.load(ModelRegistry(), record("b"), default=False)
    twice = amendments.load(once, record("b"), default=False)

    assert len(twice.loaded) == 1
    assert entry(twice, "b").digest != entry(once, "b").digest


def test_nothing_is_kept_of_models_that_are_gone() -> None:
    registry = amendments.change(amendments.load(listed("a"), record("b"), default=False), "b", {"max_batch_size": 2})
    assert registry.changes == {"b": ModelChange(max_batch_size=2)}
    assert amendments.unload(registry, "b").changes == {}


def test_given_back_changes_leave_no_trace() -> None:
    registry = amendments.change(listed("a"), "a", {"max_batch_size": 2})
    assert amendments.change(registry, "a", {"max_batch_size": None}) == listed("a")


def test_there_is_an_end_to_the_number_of_models() -> None:
    registry = listed(*(f"m{number}" for number in range(amendments.MAX_MODELS)))
    with pytest.raises(RequestError, match="too many"):
        amendments.load(registry, record("b"), default=False)


def test_without_any_model_the_stub_serves_and_leaves_when_one_comes() -> None:
    assert [each.stub_reason for each in entries_of(ModelRegistry())] == ["no model is configured"]
    assert [each.id for each in entries_of(amendments.load(ModelRegistry(), record("b"), default=False))] == ["b"]
