"""Fixtures that every room's tests may use."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ("harness.nats",)

# Tests share their cores with each other and with servers: threads of a model that spin for long would stop the rest.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# How long an example takes says more about the machine than about us.
settings.register_profile("inferflux", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("inferflux")

SLOW_FIRST = ("chaos", "e2e", "deploy")
"""Folders whose files take minutes: begun last, one of them would keep a single process busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Processes that share the tests begin with the long ones."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: _rank(item.path))


def _rank(path: Path) -> int:
    folder = path.relative_to(Path(__file__).parent).parts[0]
    return SLOW_FIRST.index(folder) if folder in SLOW_FIRST else len(SLOW_FIRST)
