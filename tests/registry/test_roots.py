from __future__ import annotations

from pathlib import Path

import pytest

from inferflux.broker.errors import RequestError
from inferflux.config.settings import RegistrySettings
from inferflux.registry.roots import ModelRoots


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models" / "deep").mkdir(parents=True)
    (tmp_path / "models" / "a.gguf").touch()
    (tmp_path / "models" / "deep" / "b.gguf").touch()
    (tmp_path / "secret.gguf").touch()
    return tmp_path


def roots(folder: Path, *names: str) -> ModelRoots:
    given = tuple(str(folder / name) for name in names or ("models",))
    return ModelRoots(RegistrySettings(path=str(folder / "config" / "registry.yaml"), roots=given))


def test_models_are_found_in_every_root(folder: Path) -> None:
    assert roots(folder).find("a.gguf") == str(folder / "models" / "a.gguf")
    assert roots(folder).find("deep/../a.gguf") == str(folder / "models" / "a.gguf")
    assert roots(folder).find(str(folder / "models" / "deep" / "b.gguf")).endswith("b.gguf")
    assert roots(folder, "elsewhere", "models").find("a.gguf") == str(folder / "models" / "a.gguf")


@pytest.mark.parametrize(
    "path",
    [
        "../secret.gguf",
        "deep/../../secret.gguf",
        "/etc/passwd",
        "../modelsX/a.gguf",
        "a\x00.gguf",
        "a\n.gguf",
        "~/a.gguf",
        "missing.gguf",
    ],
)
def test_nothing_else_is(folder: Path, path: str) -> None:
    with pytest.raises(RequestError) as caught:
        roots(folder).find(path)
    assert caught.value.param == "path"


def test_an_absolute_path_outside_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"registry\.roots"):
        roots(folder).find(str(folder / "secret.gguf"))


def test_a_root_that_only_workers_have_is_not_looked_into(folder: Path) -> None:
    assert roots(folder, "of-the-workers").find("a.gguf") == str(folder / "of-the-workers" / "a.gguf")


def test_without_roots_the_registry_file_has_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = ModelRoots(RegistrySettings(path="config/registry.yaml")).folders
    assert found == (folder / "config", folder / "models")
