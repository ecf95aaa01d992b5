"""Kernels are built once, and only used when they ran in a child process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from inferflux.workers.backends.torch_engine.native_build import load_kernels
from inferflux.workers.backends.torch_engine.native_operations import NativeOperations


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def environ(tmp_path: Path, compiler: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "CXX": compiler, "INFERFLUX_CACHE_DIR": str(tmp_path / "cache")}


def test_a_second_start_takes_what_the_first_one_built(tmp_path: Path) -> None:
    counter = tmp_path / "calls"
    compiler = script(tmp_path / "compiler", f'echo call >> {counter}\nexec c++ "$@"')
    for _ in range(2):
        library = load_kernels(environ(tmp_path, compiler))
        assert library is not None
        assert library.inferflux_check()
    assert counter.read_text() == "call\n"


def test_kernels_for_an_older_processor_compute_the_same(tmp_path: Path) -> None:
    compiler = script(tmp_path / "compiler", 'exec c++ "$@" -mno-avx512f')
    older, ours = load_kernels(environ(tmp_path, compiler)), load_kernels()
    assert older is not None
    assert ours is not None
    torch.manual_seed(0)
    weight, rows = torch.randn(40, 96), torch.randn(7, 96)
    for int8 in (False, True):
        products = [
            NativeOperations(library, 2, torch.float32, int8=int8).linear(weight, None)(rows)
            for library in (older, ours)
        ]
        torch.testing.assert_close(*products, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("problem", ["exit 1", 'while [ "$1" != -o ]; do shift; done; echo junk > "$2"'])
def test_what_does_not_compile_or_run_is_not_used(tmp_path: Path, problem: str) -> None:
    compiler = script(tmp_path / "compiler", problem)
    assert load_kernels(environ(tmp_path, compiler)) is None
    assert list((tmp_path / "cache" / "kernels").iterdir()) == []


def test_a_library_that_dies_in_the_child_is_not_used(tmp_path: Path) -> None:
    source = tmp_path / "dies.cpp"
    source.write_text('#include <csignal>\nextern "C" int inferflux_check() { return raise(SIGILL); }')
    compiler = script(
        tmp_path / "compiler", f'while [ "$1" != -o ]; do shift; done; exec c++ -shared -fPIC {source} -o "$2"'
    )
    assert load_kernels(environ(tmp_path, compiler)) is None


def test_no_compiler_is_no_error(tmp_path: Path) -> None:
    assert load_kernels({"PATH": str(tmp_path), "INFERFLUX_CACHE_DIR": str(tmp_path)}) is None
