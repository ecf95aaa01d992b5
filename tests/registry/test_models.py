from __future__ import annotations

from pathlib import Path

import pytest

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import ModelSettings, RegistrySettings, Settings
from inferflux.registry.models import Models, load_models


def load(tmp_path: Path, text: str | None = None, model: ModelSettings | None = None) -> Models:
    path = tmp_path / "config" / "registry.yaml"
    if text is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return load_models(Settings(registry=RegistrySettings(path=str(path)), model=model or ModelSettings()))


def test_nothing_configured_is_a_stub(tmp_path: Path) -> None:
    (entry,) = load(tmp_path)

    assert (entry.id, entry.backend, entry.default) == ("stub", "stub", True)
    assert entry.stub_reason


def test_paths_are_relative_to_the_registry_file(tmp_path: Path) -> None:
    (tmp_path / "models" / "folder").mkdir(parents=True)
    (tmp_path / "models" / "small.gguf").touch()
    models = load(
        tmp_path,
        """
        models:
          - {id: org/small:v1.5, path: ../models/small.gguf, default: true, aliases: [small]}
          - {id: big, path: ../models/folder, context_length: 2048}
          - {id: pretend, backend: stub}
        """,
    )

    small, big, pretend = models
    assert small.path is not None
    assert small.path.samefile(tmp_path / "models" / "small.gguf")
    assert [entry.backend for entry in models] == ["llamacpp", "torch", "stub"]
    assert [entry.stub_reason for entry in models] == [None, None, None]
    assert big.context_length == 2048
    assert models.resolve("small") is small
    assert models.resolve(None) is small
    assert models.resolve("pretend") is pretend
    assert models.resolve("nobody") is None


def test_missing_file_is_served_by_the_stub_under_its_id(tmp_path: Path) -> None:
    (entry,) = load(tmp_path, "models: [{id: smollm2, path: ../gone.gguf, backend: llamacpp}]")

    assert (entry.id, entry.backend) == ("smollm2", "stub")
    assert entry.stub_reason is not None
    assert "gone.gguf" in entry.stub_reason


def test_chosen_model_takes_its_stem_and_the_default(tmp_path: Path) -> None:
    chosen = tmp_path / "SmolLM2-135M.Q4_1.gguf"
    chosen.touch()
    models = load(tmp_path, "models: [{id: other, backend: stub, default: true}]", ModelSettings(path=str(chosen)))

    default = models.resolve(None)
    assert default is not None
    assert (default.id, default.backend) == ("SmolLM2-135M.Q4_1", "llamacpp")
    assert [entry.id for entry in models] == ["SmolLM2-135M.Q4_1", "other"]


def test_chosen_model_replaces_the_entry_of_its_id(tmp_path: Path) -> None:
    models = load(tmp_path, "models: [{id: m, path: gone.gguf}]", ModelSettings(id="m", backend="stub"))

    assert [(entry.id, entry.stub_reason) for entry in models] == [("m", None)]


def test_several_models_without_default_have_none(tmp_path: Path) -> None:
    assert load(tmp_path, "models: [{id: a, backend: stub}, {id: b, backend: stub}]").resolve(None) is None


@pytest.mark.parametrize("text", ["", "models:", "models: []"])
def test_empty_registry_is_a_stub(tmp_path: Path, text: str) -> None:
    assert [entry.id for entry in load(tmp_path, text)] == ["stub"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("models: [{id: a, pth: x}]", ["models[0].pth", "(a)", "did you mean 'path'"]),
        ("models: [{id: a}, {id: b, backend: vllm}]", ["models[1].backend", "(b)", "vllm"]),
        ("models: [{path: x}]", ["models[0]", "`id`"]),
        ("models: [{id: a, context_length: 0}]", ["models[0].context_length"]),
        ("models: [{id: a}, {id: a}]", ["'a'", "both"]),
        ("models: [{id: a, aliases: [b]}, {id: b}]", ["'b'", "both"]),
        ("models: [{id: a, default: true}, {id: b, default: true}]", ["more than one default", "a, b"]),
        ("models: [{id: a, path: x, source: x.gguf}]", ["models[0].source", "(a)", "URL"]),
        ("models: [{id: a, path: x, source: 'hf:org/repo'}]", ["models[0].source", "hf:ORG/REPO/FILE"]),
        ("models: [{id: a, source: 'http://h/x.gguf'}]", ["models[0].path", "(a)", "needed beside 'source'"]),
        ("models: {a: b}", ["models", "list"]),
        ("model: []", ["model", "did you mean 'models'"]),
        ("[1]", ["mapping"]),
        ("models: [", ["registry.yaml:", "not valid YAML"]),
        ("models: [just-a-name]", ["models[0]", "expected `object`"]),
    ],
)
def test_errors_name_file_entry_and_field(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)

    assert "registry.yaml" in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
