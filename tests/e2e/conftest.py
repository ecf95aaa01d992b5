from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.model import model_path
from harness.server import Server, running_server


@pytest.fixture(scope="session")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two API replicas and two workers on one NATS, with the real model: what most of the suite talks to."""
    folder = tmp_path_factory.mktemp("serve")
    with running_server(folder, model=Path(model_path()), num_replicas=2, num_workers=2) as server:
        yield server


@pytest.fixture(scope="session")
def stub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One of each, with the stub."""
    with running_server(tmp_path_factory.mktemp("stub")) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "serve"
