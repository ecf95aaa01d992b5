"""The flags that llama.cpp is built with follow the processor, and each next build asks for less."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
from harness.checkout import ROOT


@pytest.fixture
def llama_ladder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("llama_ladder")


SAPPHIRE_RAPIDS = frozenset(
    [
        "sse4_2",
        "avx",
        "f16c",
        "fma",
        "bmi2",
        "avx2",
        "avx_vnni",
        "avx512f",
        "avx512cd",
        "avx512vl",
        "avx512dq",
        "avx512bw",
        "avx512vbmi",
        "avx512_vnni",
        "avx512_bf16",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
    ]
)
HASWELL = frozenset(["sse4_2", "avx", "f16c", "fma", "bmi2", "avx2"])


def switched_on(cmake_args: tuple[str, ...]) -> set[str]:
    return {arg[len("-DGGML_") : -len("=ON")] for arg in cmake_args if arg.endswith("=ON")}


def test_a_rich_processor_gets_three_rungs_and_never_native(llama_ladder: ModuleType) -> None:
    processor = llama_ladder.Processor("Linux", "x86_64", SAPPHIRE_RAPIDS)
    full, avx2, baseline = llama_ladder.ladder(processor, lambda flags: True)
    assert {"AVX512", "AVX512_BF16", "AVX512_VNNI", "AVX2"} <= switched_on(full.cmake_args)
    assert switched_on(avx2.cmake_args) == {"SSE42", "AVX", "F16C", "FMA", "BMI2", "AVX2"}
    assert switched_on(baseline.cmake_args) == {"SSE42"}
    for rung in (full, avx2, baseline):
        assert "-DGGML_NATIVE=OFF" in rung.cmake_args
        assert not any("AMX" in arg for arg in rung.cmake_args)
        assert "-DGGML_AVX2=ON" in rung.cmake_args or "-DGGML_AVX2=OFF" in rung.cmake_args


def test_equal_rungs_are_tried_once(llama_ladder: ModuleType) -> None:
    rungs = llama_ladder.ladder(llama_ladder.Processor("Linux", "x86_64", HASWELL), lambda flags: True)
    assert [rung.name for rung in rungs] == ["full", "baseline"]


def test_what_the_compiler_does_not_know_stays_off(llama_ladder: ModuleType) -> None:
    processor = llama_ladder.Processor("Linux", "x86_64", SAPPHIRE_RAPIDS)
    full = llama_ladder.ladder(processor, lambda flags: "-mavx512bf16" not in flags)[0]
    assert "AVX512_BF16" not in switched_on(full.cmake_args)
    assert "AVX512_VNNI" in switched_on(full.cmake_args)


@pytest.mark.parametrize(("system", "machine"), [("Linux", "aarch64"), ("Darwin", "arm64")])
def test_others_start_native(llama_ladder: ModuleType, system: str, machine: str) -> None:
    rungs = llama_ladder.ladder(llama_ladder.Processor(system, machine, frozenset()), lambda flags: True)
    assert [rung.cmake_args for rung in rungs] == [("-DGGML_NATIVE=ON",), ("-DGGML_NATIVE=OFF",)]


def test_the_cache_tells_builds_apart(llama_ladder: ModuleType) -> None:
    rich = llama_ladder.Processor("Linux", "x86_64", SAPPHIRE_RAPIDS)
    rungs = llama_ladder.ladder(rich, lambda flags: True)
    keys = {llama_ladder.cache_key("1", rung, rich, "GCC 12", "") for rung in rungs}
    keys.add(llama_ladder.cache_key("1", rungs[0], rich, "GCC 13", ""))
    keys.add(llama_ladder.cache_key("2", rungs[0], rich, "GCC 12", ""))
    keys.add(llama_ladder.cache_key("1", rungs[0], rich, "GCC 12", "-DGGML_CUDA=ON"))
    assert len(keys) == 6
    arms = [llama_ladder.Processor("Linux", "aarch64", frozenset(features)) for features in ({"asimd"}, {"sve"})]
    native = [llama_ladder.ladder(arm, lambda flags: True)[0] for arm in arms]
    first, second = (llama_ladder.cache_key("1", rung, arm, "", "") for rung, arm in zip(native, arms, strict=True))
    assert first != second
