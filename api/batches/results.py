"""The results: a batch's output and error files, made of its journal.

Who writes them twice writes the same: what counts of the journal is settled before, and so are names and times.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec

from inferflux.broker.errors import RevisionConflict
from inferflux.broker.objects import Objects, ObjectWriter
from inferflux.broker.subjects import object_name
from inferflux.broker.wire.batches import Batch, BatchEntry, ObjectInfo

from .identity import request_name, result_file

OUTPUT = "batch_output"
EXPIRED = "batch_expired"


class Response(msgspec.Struct, frozen=True):
    """What the endpoint would have answered."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineFailure(msgspec.Struct, frozen=True):
    """Why a line has no response."""

    code: str
    message: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the output or error file, in OpenAI's shape."""

    id: str
    custom_id: str
    response: Response | None
    error: LineFailure | None = None


NOT_IN_TIME = LineFailure(EXPIRED, "This request could not be executed before the completion window expired.")


class Results:
    """Both files of one batch; `retention_s` is how long they are kept."""

    def __init__(self, objects: Objects, batch: Batch, retention_s: float) -> None:
        assert batch.finalizing is not None
        self._objects = objects
        self._batch = batch
        self._expires_s = int(batch.finalizing + retention_s)

    async def write(
        self, entries: AsyncIterator[BatchEntry], undone: AsyncIterator[tuple[int, str]]
    ) -> tuple[ObjectInfo | None, ObjectInfo | None]:
        """The two files, where there is anything to go into them. `undone` are lines that no time was left for."""
        output_id, error_id = (result_file(self._batch, kind) for kind in ("output", "error"))
        output, errors = self._writer(output_id), self._writer(error_id)
        async for entry in entries:
            await (errors if entry.failed else output).add(bytes(entry.record) + b"\n")
        async for number, custom_id in undone:
            record = Record(id=request_name(self._batch, number), custom_id=custom_id, response=None, error=NOT_IN_TIME)
            await errors.add(msgspec.json.encode(record) + b"\n")
        return await self._close(output, output_id, "output"), await self._close(errors, error_id, "error")

    def _writer(self, ident: str) -> ObjectWriter:
        return self._objects.write(object_name(self._batch.tenant, ident))

    async def _close(self, writer: ObjectWriter, ident: str, kind: str) -> ObjectInfo | None:
        if not writer.size:
            return None
        metadata = {
            "filename": f"{self._batch.id}_{kind}.jsonl",
            "purpose": OUTPUT,
            "created": str(int(self._batch.finalizing or 0)),
            "expires": str(self._expires_s),
        }
        with contextlib.suppress(RevisionConflict):
            return await writer.close(metadata)
        return await self._objects.info(object_name(self._batch.tenant, ident))
