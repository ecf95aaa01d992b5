"""A build of llama.cpp is trusted once it has decoded in a child process; one that dies gives way to a smaller one."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from harness.checkout import ROOT

FEATURES = frozenset(
    {"sse4_2", "avx", "f16c", "fma", "bmi2", "avx2", "avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}
)


@pytest.fixture
def build_llama(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("build_llama")


class Workshop:
    """Stands in for pip and the compiler: remembers what was built, installed and removed."""

    def __init__(self, module: ModuleType, monkeypatch: pytest.MonkeyPatch, verdicts: dict[str, str | None]) -> None:
        llama_ladder = importlib.import_module("llama_ladder")
        self.built: list[str] = []
        self.installed = ""
        self.verdicts = verdicts
        self.unbuildable: set[str] = set()
        self.failure: type[Exception] = module.BuildFailed
        monkeypatch.setattr(module, "find_compiler", lambda: (["c++"], "a compiler"))
        monkeypatch.setattr(module, "find_processor", lambda: llama_ladder.Processor("Linux", "x86_64", FEATURES))
        monkeypatch.setattr(module, "accepts_flags", lambda compiler, flags: True)
        monkeypatch.setattr(module, "fetch_source", lambda cache: cache / "source.tar.gz")
        monkeypatch.setattr(module, "build", self.build)
        monkeypatch.setattr(module, "install", self.install)
        monkeypatch.setattr(module, "prove", lambda model: self.verdicts[self.installed])
        monkeypatch.setattr(module, "pip", self.pip)

    def build(self, source: Path, rung: object, extra_args: str, folder: Path) -> Path:
        name = str(getattr(rung, "name", ""))
        self.built.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        if name in self.unbuildable:
            raise self.failure(name)
        wheel = folder / f"{name}.whl"
        wheel.touch()
        return wheel

    def install(self, wheel: Path) -> None:
        self.installed = wheel.stem

    def pip(self, *args: str) -> list[str]:
        assert args[0] == "uninstall"
        self.installed = ""
        return []


def test_the_first_build_that_decodes_is_kept(
    build_llama: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workshop = Workshop(build_llama, monkeypatch, {"full": "it died by SIGILL", "avx2": None})
    build_llama.provide(tmp_path, tmp_path / "model.gguf")
    assert workshop.built == ["full", "avx2"]
    assert workshop.installed == "avx2"


def test_the_cache_spares_a_second_checkout_the_compiler(
    build_llama: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verdicts = {"full": "it died by SIGILL", "avx2": None}
    Workshop(build_llama, monkeypatch, verdicts)
    build_llama.provide(tmp_path, tmp_path / "model.gguf")
    second = Workshop(build_llama, monkeypatch, verdicts)
    build_llama.provide(tmp_path, tmp_path / "model.gguf")
    assert (second.built, second.installed) == ([], "avx2")


def test_what_does_not_compile_is_not_tried_again(
    build_llama: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for expected in (["full", "avx2"], []):
        workshop = Workshop(build_llama, monkeypatch, {"avx2": None})
        workshop.unbuildable = {"full"}
        build_llama.provide(tmp_path, tmp_path / "model.gguf")
        assert (workshop.built, workshop.installed) == (expected, "avx2")


def test_nothing_that_dies_stays_installed(
    build_llama: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dead = "it died by SIGSEGV"
    workshop = Workshop(build_llama, monkeypatch, {"full": dead, "avx2": dead, "baseline": dead})
    with pytest.raises(build_llama.Unavailable):
        build_llama.provide(tmp_path, tmp_path / "model.gguf")
    assert workshop.built == ["full", "avx2", "baseline"]
    assert workshop.installed == ""


@pytest.mark.parametrize(
    ("library", "problem"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)", "it died by SIGILL"),
        ("raise ImportError('libggml.so: wrong ELF class')", "ImportError: libggml.so: wrong ELF class"),
    ],
)
def test_the_child_tells_how_it_died(
    build_llama: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str, problem: str
) -> None:
    (tmp_path / "llama_cpp.py").write_text(library)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert build_llama.prove(tmp_path / "model.gguf") == problem


@pytest.mark.model
def test_the_installed_library_decodes(build_llama: ModuleType) -> None:
    model = ROOT / "models" / "smollm2.gguf"
    if not model.exists():
        pytest.skip("the default model was not fetched")
    assert build_llama.prove(model) is None
