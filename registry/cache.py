"""Orders for the prefix caches: one document in KV that operators write and workers follow."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable

import msgspec

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.subjects import BUCKET_POLICY, KEY_CACHE
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.policies import CacheOrders, WarmPrefix

from .store import Document, PolicyStore

Amendment = Callable[[CacheOrders], CacheOrders]

MAX_WARM = 64
MAX_BYTES = 256 * 1024
"""Of all prefixes together: they travel in one message."""


def cache_document(store: PolicyStore) -> Document[CacheOrders]:
    return Document(store, BUCKET_POLICY, KEY_CACHE, CacheOrders())


class CacheStore:
    """Reads and changes the orders. Every call may raise BrokerError."""

    def __init__(self, store: PolicyStore) -> None:
        self._document = cache_document(store)

    async def read(self) -> CacheOrders:
        return (await self._document.read())[0]

    async def clear(self, models: Iterable[str], *, dry_run: bool = False) -> CacheOrders:
        """Have these models' caches forget everything, and what they were to hold with it."""
        named = set(models)

        def cleared(now: CacheOrders) -> CacheOrders:
            counts = {**now.cleared, **{model: now.cleared.get(model, 0) + 1 for model in named}}
            return CacheOrders(cleared=counts, warm=tuple(each for each in now.warm if each.model not in named))

        return await self._amend(cleared, dry_run)

    async def warm(self, prefix: WarmPrefix, *, dry_run: bool = False) -> CacheOrders:
        """Have the caches of a model hold a prefix from now on, on workers that come later too. Raises RequestError."""
        new = msgspec.structs.replace(prefix, id=secrets.token_hex(4), at=time.time())

        def warmed(now: CacheOrders) -> CacheOrders:
            wanted = msgspec.structs.replace(now, warm=(*(each for each in now.warm if not _same(each, new)), new))
            if len(wanted.warm) > MAX_WARM or sum(len(encode(each)) for each in wanted.warm) > MAX_BYTES:
                raise RequestError(
                    Code.INVALID_REQUEST,
                    f"at most {MAX_WARM} prefixes of {MAX_BYTES} bytes together are kept warm: clear a model's cache",
                )
            return wanted

        return await self._amend(warmed, dry_run)

    async def _amend(self, change: Amendment, dry_run: bool) -> CacheOrders:
        return change(await self.read()) if dry_run else await self._document.change(change)


def _same(one: WarmPrefix, other: WarmPrefix) -> bool:
    return msgspec.structs.replace(one, id="", at=0.0) == msgspec.structs.replace(other, id="", at=0.0)
