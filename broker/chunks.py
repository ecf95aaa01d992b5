"""The chunks of an object store on JetStream: each is the newest message of its own subject."""

from __future__ import annotations

import contextlib
from collections import Counter

from . import subjects
from .broker import ChunkStore
from .errors import BrokerError, RevisionConflict, StoreFull
from .jetstream_api import ERR_INSUFFICIENT_RESOURCES, ERR_STREAM_STORE_FAILED, ApiError, JetStreamApi, WrongSequence


class JetStreamChunks(ChunkStore):
    """Everything is read from the stream's leader: who lost a compare-and-set must find what it lost to."""

    def __init__(self, js: JetStreamApi, store: str) -> None:
        self._js = js
        self._store = store
        self._stream = subjects.object_stream(store)

    @property
    def name(self) -> str:
        return self._store

    async def put(self, name: str, number: int, data: bytes, *, fresh: bool = False) -> None:
        await self._put(subjects.object_chunk(self._store, name, number), data, fresh=fresh)

    async def get(self, name: str, number: int) -> bytes | None:
        return await self._get(subjects.object_chunk(self._store, name, number))

    async def purge(self, name: str) -> None:
        await self._purge(subjects.object_chunks(self._store, name))

    async def names(self) -> dict[str, int]:
        chunks, _ = subjects.object_subjects(self._store)
        counts: Counter[str] = Counter()
        for subject, count in (await self._js.subject_counts(self._stream, chunks)).items():
            counts[subjects.parse_object_chunk(subject)] += count
        return counts

    async def stored_s(self, name: str, number: int) -> float | None:
        subject = subjects.object_chunk(self._store, name, number)
        stored = await self._js.stored(self._stream, last_by_subj=subject)
        return None if stored is None else stored.stored_s

    async def describe(self, name: str, about: bytes) -> None:
        await self._put(subjects.object_about(self._store, name), about, fresh=True)

    async def about(self, name: str) -> bytes | None:
        return await self._get(subjects.object_about(self._store, name))

    async def described(self) -> list[str]:
        _, abouts = subjects.object_subjects(self._store)
        names: list[str] = []
        for subject in await self._js.subject_counts(self._stream, abouts):
            with contextlib.suppress(ValueError):  # another client's, which names its objects otherwise
                names.append(subjects.parse_object_about(subject))
        return names

    async def forget(self, name: str) -> bool:
        return await self._purge(subjects.object_about(self._store, name)) > 0

    async def _put(self, subject: str, data: bytes, *, fresh: bool) -> None:
        headers = {subjects.HEADER_EXPECTED_SUBJECT_SEQ: "0"} if fresh else {}
        try:
            await self._js.put(self._stream, subject, data, headers)
        except WrongSequence as error:
            raise RevisionConflict(f"{subject} is there already") from error
        except ApiError as error:
            if "maximum bytes" in error.description or error.err_code in (
                ERR_STREAM_STORE_FAILED,
                *ERR_INSUFFICIENT_RESOURCES,
            ):
                raise StoreFull(f"the object store takes nothing more: {error.description}") from error
            raise BrokerError(f"{subject} cannot be written: {error.description}") from error

    async def _get(self, subject: str) -> bytes | None:
        stored = await self._js.stored(self._stream, last_by_subj=subject)
        return None if stored is None else stored.data

    async def _purge(self, subject: str) -> int:
        answer = await self._js.call("STREAM", "PURGE", self._stream, body={"filter": subject})
        return int(answer.get("purged", 0))
