from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from harness.model import model_path

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import LlamaCppSettings, PagedKVSettings, RuntimeSettings, SchedulerSettings
from inferflux.workers.backends.opening import open_backend


def test_auto_is_the_stub_without_a_model() -> None:
    assert open_backend("auto", None, RuntimeSettings()).name == "stub"


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("torch", None, "torch needs a model; .* or to a folder with safetensors"),
        ("llamacpp", None, "INFERFLUX_MODEL_PATH"),
        ("auto", "model.bin", "no backend serves 'model.bin'"),
    ],
)
def test_what_cannot_be_opened_is_named_with_the_fix(kind: str, path: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_backend(kind, path, RuntimeSettings())  # type: ignore[arg-type]


def test_a_batch_must_have_room_for_all_its_sequences() -> None:
    settings = RuntimeSettings(scheduler=SchedulerSettings(max_batch_tokens=8, max_batch_size=16))
    with pytest.raises(ConfigError, match="max_batch_tokens"):
        open_backend("stub", None, settings).start()


def test_the_stub_imports_nothing_heavy() -> None:
    code = (
        "import sys; from inferflux.config.settings import RuntimeSettings;"
        "from inferflux.workers.backends.opening import open_backend; open_backend('stub', None, RuntimeSettings());"
        "print([name for name in ('llama_cpp', 'torch', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.strip() == "[]"


@pytest.mark.model
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"PK\x03\x04 a zip file", "no GGUF file"), (b"GGUF" + b"\x00" * 64, "cannot load")],
)
def test_a_file_that_is_no_model_is_named_with_the_reason(tmp_path: Path, content: bytes | None, message: str) -> None:
    model_path()
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    backend = open_backend("auto", str(path), RuntimeSettings())
    with pytest.raises(ConfigError, match=message):
        backend.start()
    backend.close()


@pytest.mark.model
def test_settings_that_do_not_go_together_are_an_error() -> None:
    settings = RuntimeSettings(
        scheduler=SchedulerSettings(max_batch_size=1),
        paged_kv=PagedKVSettings(type="q8_0"),
        llamacpp=LlamaCppSettings(flash_attention=False, context_length=256),
    )
    backend = open_backend("llamacpp", model_path(), settings)
    with pytest.raises(ConfigError, match="flash"):
        backend.start()
    backend.close()


@pytest.mark.model
def test_quantized_kv_serves(recwarn: pytest.WarningsRecorder) -> None:
    settings = RuntimeSettings(
        scheduler=SchedulerSettings(max_batch_size=2),
        paged_kv=PagedKVSettings(type="q8_0"),
        llamacpp=LlamaCppSettings(context_length=256),
    )
    backend = open_backend("llamacpp", model_path(), settings)
    capacity = backend.start()
    assert capacity.kv_bytes == 2 * 256 * 30 * 3 * 128 * 34 // 32
    assert "q8_0" in capacity.fingerprint
    backend.close()
