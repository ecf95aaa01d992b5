from __future__ import annotations

import pytest

from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.registry.passphrase import wrap


@pytest.fixture(autouse=True)
def _cheap_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wrap.__kwdefaults__, "cost", 2)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(MemoryHub())
