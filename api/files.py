"""Files: what tenants upload and what batches leave, in the object store, within each tenant's quota."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec

from inferflux.broker.errors import BrokerError, Code, RequestError, RevisionConflict
from inferflux.broker.objects import Objects, ObjectWriter
from inferflux.broker.subjects import object_name, parse_object_name
from inferflux.broker.wire.batches import ObjectInfo
from inferflux.config.logs import get_logger
from inferflux.config.settings import FileSettings
from inferflux.registry.tenants import Tenants

log = get_logger("api.files")

READ_WIDTH = 16
"""Descriptions that are read at a time."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a tenant; times are Unix seconds."""

    id: str
    tenant: str
    filename: str
    purpose: str
    created: int
    expires: int
    info: ObjectInfo

    @classmethod
    def of(cls, info: ObjectInfo) -> StoredFile:
        tenant, ident = parse_object_name(info.name)
        about = info.metadata
        return cls(
            id=ident,
            tenant=tenant,
            filename=about.get("filename", ident),
            purpose=about.get("purpose", ""),
            created=int(about.get("created", 0)),
            expires=int(about.get("expires", 0)),
            info=info,
        )


class Files:
    """Every tenant's. Each call may raise BrokerError."""

    def __init__(self, settings: FileSettings, tenants: Tenants, objects: Objects) -> None:
        self.max_bytes = settings.max_bytes
        self.objects = objects
        self._settings = settings
        self._tenants = tenants

    def retention_s(self, tenant: str) -> float:
        """How long a file of this tenant is kept unless it says otherwise."""
        return self._tenants.tenant(tenant).file_retention_s or self._settings.retention_s

    def quota_bytes(self, tenant: str) -> int:
        return self._tenants.tenant(tenant).file_quota_bytes or self._settings.quota_bytes

    async def begin(self, tenant: str, ident: str) -> Draft:
        """A file to be written. Raises RequestError where the tenant has no room at all."""
        room = self.quota_bytes(tenant) - await self.used_bytes(tenant)
        if room <= 0:
            raise self._over_quota(tenant)
        return Draft(self, tenant, ident, min(room, self.max_bytes))

    async def find(self, tenant: str, ident: str) -> StoredFile | None:
        try:
            info = await self.objects.info(object_name(tenant, ident))
        except ValueError:  # an id that no subject can spell
            return None
        return None if info is None else StoredFile.of(info)

    async def get(self, tenant: str, ident: str) -> StoredFile:
        """Raises RequestError where there is none."""
        file = await self.find(tenant, ident)
        if file is None:
            raise RequestError(Code.NOT_FOUND, f"there is no file {ident[:200]!r}", param="file_id")
        return file

    async def all(self, tenant: str) -> list[StoredFile]:
        """Oldest first."""
        room = asyncio.Semaphore(READ_WIDTH)

        async def read(ident: str) -> StoredFile | None:
            async with room:
                return await self.find(tenant, ident)

        found = await asyncio.gather(*map(read, await self.objects.names(tenant)))
        return sorted((file for file in found if file is not None), key=lambda file: (file.created, file.id))

    async def used_bytes(self, tenant: str) -> int:
        return sum(file.info.size for file in await self.all(tenant))

    async def content(self, file: StoredFile) -> AsyncIterator[bytes]:
        """Its bytes. A file that is damaged breaks off: who counts the bytes notices."""
        async for chunk in self.objects.read(file.info):
            yield chunk

    async def delete(self, file: StoredFile) -> None:
        await self.objects.delete(file.info.name)
        log.info("file deleted", file=file.id, tenant=file.tenant)

    def _over_quota(self, tenant: str) -> RequestError:
        return RequestError(
            Code.QUOTA_EXCEEDED,
            f"your files may take {self.quota_bytes(tenant)} bytes together; delete some first",
            param="file",
        )

    def too_large(self, tenant: str, max_bytes: int) -> RequestError:
        """Why a file may not grow over `max_bytes`."""
        if max_bytes < self.max_bytes:
            return self._over_quota(tenant)
        return RequestError(
            Code.REQUEST_TOO_LARGE, f"a file may have {self.max_bytes} bytes at most; split it", param="file"
        )


class Draft:
    """A file that is being written: `keep` it, or `discard` it and nothing is left."""

    def __init__(self, files: Files, tenant: str, ident: str, max_bytes: int) -> None:
        self._files = files
        self._tenant = tenant
        self._ident = ident
        self._max_bytes = max_bytes
        self._writer: ObjectWriter = files.objects.write(object_name(tenant, ident))

    @property
    def size(self) -> int:
        return self._writer.size

    async def add(self, data: bytes | bytearray) -> None:
        """Raises RequestError when it gets too large, StoreFull."""
        if self._writer.size + len(data) > self._max_bytes:
            raise self._files.too_large(self._tenant, self._max_bytes)
        await self._writer.add(data)

    async def keep(self, *, filename: str, purpose: str, retention_s: float | None = None) -> StoredFile:
        """Raises RequestError where other uploads have used up the quota meanwhile."""
        used = await self._files.used_bytes(self._tenant)
        if used + self.size > self._files.quota_bytes(self._tenant):
            raise self._files.too_large(self._tenant, 0)
        now_s = time.time()
        kept_s = self._files.retention_s(self._tenant) if retention_s is None else retention_s
        try:
            info = await self._writer.close(
                {
                    "filename": filename,
                    "purpose": purpose,
                    "created": str(int(now_s)),
                    "expires": str(int(now_s + kept_s)),
                }
            )
        except RevisionConflict:
            raise RequestError(Code.CONFLICT, f"there is a file {self._ident!r} already", param="file") from None
        log.info("file stored", file=self._ident, tenant=self._tenant, num_bytes=self.size)
        return StoredFile.of(info)

    async def discard(self) -> None:
        try:
            await self._writer.discard()
        except BrokerError as error:
            # What is left has no description, and goes when it is found.
            log.warning("draft not discarded", file=self._ident, reason=str(error))
