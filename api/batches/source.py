"""The source: a batch's input file, line by line, however often it is read and whatever the broker does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from inferflux.broker.errors import ObjectDamaged
from inferflux.broker.objects import Objects
from inferflux.broker.subjects import object_name
from inferflux.broker.wire.batches import Batch, ObjectInfo

from .services import insist
from .splitter import Line, LineSplitter

BREATH = 50
"""Lines after which others on the event loop get their turn."""


class Source:
    """Holds a chunk and a line at most."""

    def __init__(self, objects: Objects, batch: Batch, max_line_bytes: int) -> None:
        self._objects = objects
        self._name = object_name(batch.tenant, batch.input_file)
        self._max_line_bytes = max_line_bytes

    async def checked(self) -> AsyncIterator[Line]:
        """Every line; at the end the file's digest is compared. Raises ObjectDamaged, BrokerUnavailable."""
        info = await self._info()
        splitter = LineSplitter(self._max_line_bytes)
        async for chunk in self._objects.read(info):
            async for line in _breathing(splitter, chunk):
                yield line
        for line in splitter.close():
            yield line

    async def lines(self) -> AsyncIterator[Line]:
        """Every line, waiting for the broker where it does not answer. Raises ObjectDamaged."""
        info = await insist(self._info)
        splitter = LineSplitter(self._max_line_bytes)
        for number in range(info.chunks):
            chunk = await insist(lambda number=number: self._objects.chunks.get(self._name, number))  # type: ignore[misc]
            if chunk is None:
                raise ObjectDamaged(f"chunk {number} of {info.chunks} is missing")
            async for line in _breathing(splitter, chunk):
                yield line
        for line in splitter.close():
            yield line

    async def _info(self) -> ObjectInfo:
        info = await self._objects.info(self._name)
        if info is None:
            raise ObjectDamaged("the input file is not there any more")
        return info


async def _breathing(splitter: LineSplitter, chunk: bytes) -> AsyncIterator[Line]:
    for number, line in enumerate(splitter.feed(chunk)):
        if number % BREATH == 0:
            await asyncio.sleep(0)
        yield line
