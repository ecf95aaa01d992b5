"""The inspection: a batch's whole file looked through, against what its key may use."""

from __future__ import annotations

import asyncio

from inferflux.broker.errors import BrokerUnavailable, ObjectDamaged
from inferflux.broker.wire.batches import Batch, LineProblem
from inferflux.registry.tenants import Principal

from ..auth import usable_model
from .services import RETRY_S, Services
from .source import Source
from .validation import Validation


class Inspection:
    """Starts over where the broker breaks it off."""

    def __init__(self, services: Services, batch: Batch, source: Source) -> None:
        self._services = services
        self._batch = batch
        self._source = source

    async def run(self, stopped: asyncio.Event) -> Validation | None:
        """What is wrong with the file, if anything; None when it was stopped first."""
        while not stopped.is_set():
            validation = self._fresh()
            try:
                async for line in self._source.checked():
                    validation.add(line)
                    if stopped.is_set():
                        return None
                validation.close()
            except BrokerUnavailable:
                await asyncio.sleep(RETRY_S)
                continue
            except ObjectDamaged as error:
                problem = LineProblem(code="invalid_file", message=f"The file cannot be read: {error}.")
                validation.problems.insert(0, problem)
                validation.num_problems += 1
            return validation
        return None

    def _fresh(self) -> Validation:
        services, batch = self._services, self._batch
        settings = services.settings
        principal = Principal(
            tenant=services.tenants.tenant(batch.tenant),
            scopes=frozenset(),
            models=frozenset(batch.allowed_models),
            key_id="",
        )

        def resolve(name: str | None) -> str:
            return usable_model(services.models, name, principal).id

        return Validation(batch.endpoint, settings.batches.max_lines, settings.server.max_body_bytes, resolve)
