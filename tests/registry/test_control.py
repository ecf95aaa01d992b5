"""What a process follows of the control plane."""

from __future__ import annotations

import pytest

from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.config.settings import Settings
from inferflux.registry.control import Control
from inferflux.registry.store import PolicyStore
from inferflux.registry.tenants import Tenants


async def test_a_start_that_reads_nothing_in_time_says_so() -> None:
    """A process ends with that line and its supervisor tries again; a TimeoutError would be a traceback."""
    settings = Settings()
    control = Control(settings, PolicyStore(MemoryBroker(MemoryHub())), Tenants.from_settings(settings))
    with pytest.raises(BrokerUnavailable, match=r"could not be read within 0\.01 s"):
        await control.wait_listed(0.01)
