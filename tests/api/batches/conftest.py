from __future__ import annotations

from typing import Any

import pytest
from harness.batches import BatchClient


@pytest.fixture
def client(api: Any) -> BatchClient:
    return BatchClient(api)
