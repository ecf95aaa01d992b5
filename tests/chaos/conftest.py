from __future__ import annotations

from typing import NamedTuple

import pytest


class Scale(NamedTuple):
    """How much of everything: the short form runs with the whole suite, the long form by scripts/chaos.sh."""

    long: bool
    rounds: int
    load_s: float
    soak_s: float
    soak_rate: float


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--long", action="store_true", help="the long form of the chaos tests")
    group.addoption("--rounds", type=int, default=5, help="how often each fault happens in the long form")
    group.addoption("--load-s", type=float, default=120.0, help="seconds of load under rolling restarts, long form")
    group.addoption("--soak-s", type=float, default=0.0, help="seconds of mixed load for the soak; 0 leaves it out")
    group.addoption("--soak-rate", type=float, default=10.0, help="requests a second of the soak")


@pytest.fixture(scope="session")
def scale(pytestconfig: pytest.Config) -> Scale:
    # Where these tests run with the others, their options do not exist.
    if not pytestconfig.getoption("--long", default=False):
        return Scale(long=False, rounds=1, load_s=4.0, soak_s=0.0, soak_rate=0.0)
    options = [pytestconfig.getoption(name) for name in ("--rounds", "--load-s", "--soak-s", "--soak-rate")]
    return Scale(True, *options)
