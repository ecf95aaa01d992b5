"""Objects: streams of bytes under a name, kept in chunks, checked against their digest when they are read.

Nothing holds more than a chunk: what is written is taken as it comes, what is read is handed on as it is found.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime

import msgspec

from . import subjects
from .broker import ChunkStore
from .errors import ObjectDamaged
from .wire.base import encode
from .wire.batches import ObjectInfo

CHUNK_BYTES = 256 * 1024

_decode = msgspec.json.Decoder(ObjectInfo).decode


class Objects:
    """The objects of one store. Every call may raise BrokerError."""

    def __init__(self, chunks: ChunkStore) -> None:
        self.chunks = chunks

    def write(self, name: str) -> ObjectWriter:
        return ObjectWriter(self.chunks, name)

    async def info(self, name: str) -> ObjectInfo | None:
        about = await self.chunks.about(name)
        return None if about is None else _decode(about)

    async def read(self, info: ObjectInfo) -> AsyncIterator[bytes]:
        """The bytes, chunk by chunk. Raises ObjectDamaged at the first sign that they are not what was stored."""
        digest = hashlib.sha256()
        for number in range(info.chunks):
            data = await self.chunks.get(info.name, number)
            if data is None:
                raise ObjectDamaged(f"{info.name}: chunk {number} of {info.chunks} is missing")
            digest.update(data)
            yield data
        if _spell(digest.digest()) != info.digest:
            raise ObjectDamaged(f"{info.name}: its digest is not the one that was stored")

    async def names(self, tenant: str) -> list[str]:
        """The ids of a tenant's objects, sorted."""
        prefix = subjects.object_name(tenant, "_")[:-1]
        names = [name for name in await self.chunks.described() if name.startswith(prefix)]
        return sorted(subjects.parse_object_name(name)[1] for name in names)

    async def delete(self, name: str) -> bool:
        """Remove an object and all its chunks. False where there is none."""
        # Chunks without a description are found and removed later; a description without chunks is a broken object.
        found = await self.chunks.forget(name)
        await self.chunks.purge(name)
        return found


class ObjectWriter:
    """Takes bytes until `close`, which makes the object; before that, and after `discard`, there is none."""

    def __init__(self, chunks: ChunkStore, name: str) -> None:
        self.size = 0
        self._chunks = chunks
        self._name = name
        self._num_chunks = 0
        self._digest = hashlib.sha256()
        self._rest = bytearray()

    async def add(self, data: bytes | bytearray | memoryview) -> None:
        """Raises StoreFull."""
        self.size += len(data)
        self._rest += data
        while len(self._rest) >= CHUNK_BYTES:
            await self._put(bytes(self._rest[:CHUNK_BYTES]))
            del self._rest[:CHUNK_BYTES]

    async def close(self, metadata: Mapping[str, str]) -> ObjectInfo:
        """Raises RevisionConflict where an object of this name is there already."""
        if self._rest:
            await self._put(bytes(self._rest))
            self._rest.clear()
        info = describe(self._chunks.name, self._name, self.size, self._num_chunks, self._digest.digest(), metadata)
        await self._chunks.describe(self._name, encode(info))
        return info

    async def discard(self) -> None:
        await self._chunks.purge(self._name)

    async def _put(self, data: bytes) -> None:
        self._digest.update(data)
        await self._chunks.put(self._name, self._num_chunks, data)
        self._num_chunks += 1


def describe(
    store: str, name: str, size: int, num_chunks: int, digest: bytes, metadata: Mapping[str, str]
) -> ObjectInfo:
    """The description of an object that is written now."""
    return ObjectInfo(
        name=name,
        bucket=store,
        nuid=subjects.object_nuid(name),
        size=size,
        chunks=num_chunks,
        digest=_spell(digest),
        mtime=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        metadata=dict(metadata),
    )


def _spell(digest: bytes) -> str:
    return f"SHA-256={base64.urlsafe_b64encode(digest).decode()}"
