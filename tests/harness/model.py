"""The real model that tests marked `model` run on."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from .checkout import ROOT

FIX = "run scripts/test.sh, which builds llama-cpp-python and fetches the model"


def model_path() -> str:
    """The GGUF file in INFERFLUX_TEST_MODEL, or the default model; fails the test when there is none to run."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.fail(f"llama_cpp is not installed: {FIX}")
    path = Path(os.environ.get("INFERFLUX_TEST_MODEL") or ROOT / "models" / "smollm2.gguf")
    if not path.is_file():
        pytest.fail(f"there is no model at {path}: {FIX}, or set INFERFLUX_TEST_MODEL")
    return str(path)
