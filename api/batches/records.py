"""The records: every batch's entry in KV, changed by compare-and-set."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from inferflux.broker.broker import Broker, Bucket
from inferflux.broker.errors import BrokerUnavailable, RevisionConflict
from inferflux.broker.subjects import BATCH, BUCKET_BATCHES, batch_key, parse_batch_key
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.batches import Batch, BatchSubmission

MAX_RACES = 20
OVER = frozenset({"completed", "failed", "expired", "cancelled"})

decode_batch = msgspec.json.Decoder(Batch).decode
decode_submission = msgspec.json.Decoder(BatchSubmission).decode


class Kept(NamedTuple):
    """A batch as it is stored, and where it stood then."""

    batch: Batch
    revision: int


class BatchRecords:
    """Every call may raise BrokerError."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def create(self, batch: Batch) -> bool:
        """False where there is one of this id."""
        try:
            await (await self.bucket()).create(batch_key(batch.tenant, batch.id), encode(batch))
        except RevisionConflict:
            return False
        return True

    async def get(self, tenant: str, ident: str) -> Kept | None:
        try:
            entry = await (await self.bucket()).get(batch_key(tenant, ident))
        except ValueError:  # an id that no subject can spell
            return None
        if entry is None or entry.value is None:
            return None
        return Kept(decode_batch(entry.value), entry.revision)

    async def replace(self, kept: Kept, batch: Batch) -> Kept:
        """Raises RevisionConflict when somebody else was faster."""
        key = batch_key(batch.tenant, batch.id)
        return Kept(batch, await (await self.bucket()).update(key, encode(batch), kept.revision))

    async def change(self, tenant: str, ident: str, change: Callable[[Batch], Batch | None]) -> Kept | None:
        """Store what `change` makes of a batch, or nothing when it makes None. None when there is no such batch."""
        for _ in range(MAX_RACES):
            kept = await self.get(tenant, ident)
            if kept is None:
                return None
            wanted = change(kept.batch)
            if wanted is None:
                return kept
            try:
                return await self.replace(kept, wanted)
            except RevisionConflict:
                continue
        raise BrokerUnavailable(f"the batch changed {MAX_RACES} times while it was read")

    async def ids(self, tenant: str) -> list[str]:
        """A tenant's batches, sorted."""
        prefix = batch_key(tenant, "_")[:-1]
        keys = await (await self.bucket()).keys()
        return sorted(parse_batch_key(key)[2] for key in keys if key.startswith(prefix))

    async def all_ids(self) -> list[tuple[str, str]]:
        """Tenant and id of every batch."""
        keys = [key.split(".") for key in await (await self.bucket()).keys()]
        return [parse_batch_key(".".join(parts))[1:] for parts in keys if len(parts) == 3 and parts[0] == BATCH]

    async def delete(self, tenant: str, ident: str) -> None:
        await (await self.bucket()).delete(batch_key(tenant, ident))

    async def bucket(self) -> Bucket:
        return await self._broker.bucket(BUCKET_BATCHES)
