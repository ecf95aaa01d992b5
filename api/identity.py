"""Request ids: `<replica>-<random>-<tag>`. The id alone says who owns it, and proves whose it is."""

from __future__ import annotations

import base64
import secrets

from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import RequestKey, api_owner


class Identity:
    """One API process: its replica name, and the ids it makes."""

    def __init__(self, stamper: Stamper) -> None:
        self.replica = _random(5)
        self.owner = api_owner(self.replica)
        self._stamper = stamper

    def new_key(self, tenant: str) -> RequestKey:
        """A fresh request of a tenant."""
        name = f"{self.replica}-{_random(10)}"
        return RequestKey(self.owner, f"{name}-{self._stamper.tag(name, tenant)}")


def _random(num_bytes: int) -> str:
    """Lower-case base32, eight characters for five bytes."""
    return base64.b32encode(secrets.token_bytes(num_bytes)).decode().lower()
