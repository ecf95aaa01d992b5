"""What the API does with batches: it makes them, shows them and cancels them; the keepers do the rest."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.subjects import ServiceClass
from inferflux.broker.wire.batches import Batch
from inferflux.registry.tenants import Principal, Tenant

from ..paging import behind
from .agenda import Agenda
from .identity import new_batch
from .records import OVER
from .services import Services
from .task import ENDPOINTS

BATCH_FILE = "batch"
MAX_WINDOW_S = 7 * 24 * 3600
MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512

_WINDOW = re.compile(r"([1-9]\d{0,6})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def window_s(text: str) -> int:
    """Seconds of a completion window such as `24h`. Raises RequestError."""
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= MAX_WINDOW_S:
        raise RequestError(
            Code.INVALID_REQUEST,
            f"'completion_window': {text[:20]!r} is none; write it as 24h, 30m or 2d, 7d at most",
            param="completion_window",
        )
    return seconds


def checked_endpoint(endpoint: str) -> str:
    """Raises RequestError for one that batches cannot ask."""
    if endpoint not in ENDPOINTS:
        raise RequestError(Code.INVALID_REQUEST, f"'endpoint': must be one of {', '.join(ENDPOINTS)}", param="endpoint")
    return endpoint


def checked_metadata(metadata: Mapping[str, str] | None) -> dict[str, str] | None:
    """Raises RequestError for more, or longer, than OpenAI takes."""
    if metadata is None:
        return None
    if len(metadata) > MAX_METADATA:
        raise RequestError(
            Code.INVALID_REQUEST, f"'metadata': may have {MAX_METADATA} entries at most", param="metadata"
        )
    for name, value in metadata.items():
        if len(name) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            raise RequestError(
                Code.INVALID_REQUEST,
                f"'metadata.{name[:MAX_METADATA_KEY]}': names may have {MAX_METADATA_KEY} characters, "
                f"values {MAX_METADATA_VALUE}",
                param="metadata",
            )
    return dict(metadata)


def checked_class(tenant: Tenant) -> None:
    """Raises RequestError where the tenant may not use the class that batches run in."""
    if ServiceClass.BATCH not in tenant.classes:
        raise RequestError(Code.CLASS_NOT_ALLOWED, "your key may not use the service class 'batch'")


class Batches:
    """Every tenant's. Each call may raise BrokerError."""

    def __init__(self, services: Services, agenda: Agenda) -> None:
        self._services = services
        self._agenda = agenda

    async def create(self, principal: Principal, input_file: str, endpoint: str, window: str, **fields: Any) -> Batch:
        """Raises RequestError naming the field that is wrong; the file's lines are looked at later."""
        tenant = principal.tenant
        seconds = window_s(window)
        checked_endpoint(endpoint)
        checked_class(tenant)
        file = await self._services.files.get(tenant.id, input_file)
        if file.purpose != BATCH_FILE:
            raise RequestError(
                Code.INVALID_REQUEST,
                f"'input_file_id': this file's purpose is {file.purpose!r}, not {BATCH_FILE!r}",
                param="input_file_id",
            )
        self._check_room(tenant.id)
        now_s = time.time()
        batch = Batch(
            id=new_batch(),
            tenant=tenant.id,
            endpoint=endpoint,
            input_file=file.id,
            window=window,
            created=now_s,
            expires=now_s + seconds,
            allowed_models=tuple(sorted(principal.models)),
            key=principal.key_id,
            **fields,
        )
        await self._services.records.create(batch)
        return batch

    async def get(self, tenant: str, ident: str) -> Batch:
        """Raises RequestError where there is none."""
        kept = await self._services.records.get(tenant, ident)
        if kept is None:
            raise _missing(ident)
        return kept.batch

    async def cancel(self, tenant: str, ident: str) -> Batch:
        """Raises RequestError where there is none, and where it has ended."""

        def cancel(batch: Batch) -> Batch | None:
            if batch.status in ("cancelling", "cancelled", "finalizing"):
                return None
            if batch.status in OVER:
                raise RequestError(Code.CONFLICT, f"a batch whose status is {batch.status!r} cannot be cancelled")
            return msgspec.structs.replace(batch, status="cancelling", cancelling=time.time())

        kept = await self._services.records.change(tenant, ident, cancel)
        if kept is None:
            raise _missing(ident)
        return kept.batch

    async def page(self, tenant: str, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """The tenant's batches from the newest on, and whether there are more. Raises RequestError."""
        ids = (await self._services.records.ids(tenant))[::-1]
        ids = ids[behind(ids, after, "batch") :]
        found: list[Batch] = []
        for ident in ids[:limit]:
            kept = await self._services.records.get(tenant, ident)
            if kept is not None:
                found.append(kept.batch)
        return found, len(ids) > limit

    def uses(self, tenant: str, file: str) -> Batch | None:
        """A batch that has not ended and reads this file."""
        for batch in self._agenda.batches():
            if (batch.tenant, batch.input_file) == (tenant, file):
                return batch
        return None

    def _check_room(self, tenant: str) -> None:
        bound = self._services.settings.batches.max_unfinished
        if sum(batch.tenant == tenant for batch in self._agenda.batches()) >= bound:
            raise RequestError(
                Code.QUOTA_EXCEEDED, f"you have {bound} batches that have not ended; wait for one, or cancel one"
            )


def _missing(ident: str) -> RequestError:
    return RequestError(Code.NOT_FOUND, f"there is no batch {ident[:200]!r}", param="batch_id")
