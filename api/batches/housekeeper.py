"""The housekeeper: removes files and batches whose time is over, and chunks that belong to nothing."""

from __future__ import annotations

import time

from inferflux.broker.subjects import object_name, parse_object_name
from inferflux.config.logs import get_logger

from ..files import StoredFile
from ..rounds import Rounds
from .agenda import Agenda
from .identity import journal_of
from .records import OVER
from .services import Services

log = get_logger("api.files")

INTERVAL_S = 60.0
ORPHAN_S = 3600.0
"""How long chunks may lie without a description: that of an upload, or of a submission, comes after them."""


class Housekeeper:
    """Every replica has one; removing what another has removed already is nothing."""

    def __init__(self, services: Services, agenda: Agenda) -> None:
        self._services = services
        self._agenda = agenda
        self.rounds = Rounds("housekeeper", lambda: self.clean(time.time()), INTERVAL_S)

    async def clean(self, now_s: float) -> None:
        """One pass; `now_s` is Unix time. Raises BrokerError."""
        used = {object_name(batch.tenant, batch.input_file) for batch in self._agenda.batches()}
        described = set(await self._services.objects.chunks.described())
        for name in described - used:
            info = await self._services.objects.info(name)
            if info is not None and 0 < StoredFile.of(info).expires <= now_s:
                await self._services.objects.delete(name)
                log.info("file expired", file=parse_object_name(name)[1])
        await self._remove_orphans(described, now_s)
        await self._forget_batches(now_s)

    async def _remove_orphans(self, described: set[str], now_s: float) -> None:
        chunks = self._services.objects.chunks
        journals = {journal_of(batch) for batch in self._agenda.batches()}
        for name, num_chunks in (await chunks.names()).items():
            if name in described or name in journals:
                continue
            stored_s = await chunks.stored_s(name, num_chunks - 1)
            if (stored_s is None or stored_s + ORPHAN_S < now_s) and await chunks.about(name) is None:
                await chunks.purge(name)
                log.info("chunks of no file removed", name=name, num_chunks=num_chunks)

    async def _forget_batches(self, now_s: float) -> None:
        records, kept_s = self._services.records, self._services.settings.batches.retention_s
        for tenant, ident in await records.all_ids():
            kept = await records.get(tenant, ident)
            if kept is None or kept.batch.status not in OVER:
                continue
            if (kept.batch.ended or 0.0) + kept_s < now_s:
                await records.delete(tenant, ident)
