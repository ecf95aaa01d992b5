from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferflux.workers.engine.prefix_file import PrefixFileError, file_bytes, read_state, write_prefix

CHAIN = (b"a" * 16, b"b" * 16)
STATE = bytes(range(256)) * 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "prefix.kv"
    write_prefix(path, "model", CHAIN, STATE)
    return path


def test_what_is_written_can_be_read_by_its_owner_only(path: Path) -> None:
    assert read_state(path, "model") == STATE
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size <= file_bytes("model", CHAIN, STATE)
    assert [each.name for each in path.parent.iterdir()] == ["prefix.kv"]


def test_another_model_reads_nothing(path: Path) -> None:
    with pytest.raises(PrefixFileError, match="another model"):
        read_state(path, "other")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(data=st.data())
def test_no_damage_goes_unnoticed(path: Path, data: st.DataObject) -> None:
    write_prefix(path, "model", CHAIN, STATE)
    content = bytearray(path.read_bytes())
    damage = data.draw(st.sampled_from(("flip", "cut", "grow", "empty")))
    if damage == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    elif damage == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif damage == "grow":
        content += b"more"
    else:
        content = bytearray()
    path.write_bytes(content)
    with pytest.raises(PrefixFileError):
        read_state(path, "model")
