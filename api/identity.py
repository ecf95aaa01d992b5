"""Request ids: `<replica>-<random>-<tag>`. The id alone says who owns it, and proves whose it is."""

from __future__ import annotations

import base64
import hmac
import re
import secrets

from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import RequestKey, api_owner

CHAT_ID = "chatcmpl-"
COMPLETION_ID = "cmpl-"
_ID = re.compile(rf"(?:{CHAT_ID}|{COMPLETION_ID})?(([a-z2-7]{{8}})-[a-z2-7]{{16}})-([a-z2-7]{{8}})")


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

    def key_of(self, name: str, tenant: str) -> RequestKey | None:
        """The request of this id, with or without a prefix, if it is this tenant's."""
        match = _ID.fullmatch(name)
        if match is None or not hmac.compare_digest(match[3], self._stamper.tag(match[1], tenant)):
            return None
        return key_of(f"{match[1]}-{match[3]}")


def key_of(request: str) -> RequestKey:
    """The request that a replica has made under this id; the caller answers for whose it is."""
    return RequestKey(api_owner(request.partition("-")[0]), request)


def _random(num_bytes: int) -> str:
    """Lower-case base32, eight characters for five bytes."""
    return base64.b32encode(secrets.token_bytes(num_bytes)).decode().lower()
