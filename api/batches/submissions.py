"""Submissions: batches that direct publishers ask for, with a file whose chunks they have stored themselves."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time

import msgspec

from inferflux.broker import objects
from inferflux.broker.broker import Entry
from inferflux.broker.errors import BrokerError, Code, RequestError, RevisionConflict
from inferflux.broker.subjects import object_name, submission_key
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.batches import Batch, BatchSubmission, LineProblem, ObjectInfo
from inferflux.config.logs import get_logger

from .batches import BATCH_FILE, checked_class, checked_endpoint, checked_metadata, window_s
from .records import decode_submission
from .services import Services

log = get_logger("api.batches")


class Submissions:
    """Any replica may take any: the file is described once, the batch made once, then the submission goes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def hear(self, tenant: str, ident: str, entry: Entry) -> None:
        """A submission that lies in the bucket."""
        if (tenant, ident) not in self._tasks:
            task = asyncio.create_task(self._take(tenant, ident, entry), name=f"submission {ident}")
            self._tasks[tenant, ident] = task
            task.add_done_callback(lambda _: self._tasks.pop((tenant, ident), None))

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, tenant: str, ident: str, entry: Entry) -> None:
        try:
            await self._services.records.create(await self._batch(tenant, ident, entry.value or b""))
            bucket = await self._services.records.bucket()
            await bucket.delete(submission_key(tenant, ident), entry.revision)
        except RevisionConflict:
            pass  # another replica has taken it
        except BrokerError as error:
            # It stays where it is, and is heard again when a watch begins.
            log.warning("submission not taken", batch=ident, tenant=tenant, reason=str(error))
        else:
            log.info("submission taken", batch=ident, tenant=tenant)

    async def _batch(self, tenant: str, ident: str, body: bytes) -> Batch:
        """The batch, or one that has failed and says why."""
        now_s = time.time()
        failed = Batch(
            id=ident,
            tenant=tenant,
            endpoint="",
            input_file="",
            window="",
            created=now_s,
            expires=now_s,
            status="failed",
            ended=now_s,
            num_problems=1,
        )
        try:
            given = decode_submission(body)
            batch = Batch(
                id=ident,
                tenant=tenant,
                endpoint=checked_endpoint(given.endpoint),
                input_file=given.input_file,
                window=given.completion_window,
                created=now_s,
                expires=now_s + window_s(given.completion_window),
                metadata=checked_metadata(given.metadata),
            )
            checked_class(self._services.tenants.tenant(tenant))
            await self._describe(tenant, given, now_s)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            problem = LineProblem(code=Code.INVALID_REQUEST.value, message=f"the submission is not valid: {error}")
        except RequestError as error:
            problem = LineProblem(code=error.code.value, message=error.message, param=error.param)
        else:
            return batch
        return msgspec.structs.replace(failed, problems=(problem,))

    async def _describe(self, tenant: str, given: BatchSubmission, now_s: float) -> None:
        """Make a file of the chunks. Raises RequestError where they are not what was submitted, or too much."""
        files = self._services.files
        name = object_name(tenant, given.input_file)
        info = await files.objects.info(name)
        if info is not None:
            if info.digest != spell_digest(given.digest):
                raise RequestError(Code.CONFLICT, "a file of this name is there already", param="input_file")
            return
        digest, size = hashlib.sha256(), 0
        room = min(files.max_bytes, files.quota_bytes(tenant) - await files.used_bytes(tenant))
        for number in range(given.chunks):
            chunk = await files.objects.chunks.get(name, number)
            if chunk is None:
                raise RequestError(Code.INVALID_REQUEST, f"chunk {number} is not there", param="chunks")
            digest.update(chunk)
            size += len(chunk)
            if size > room:
                raise files.too_large(tenant, room)
        if digest.hexdigest() != given.digest:
            raise RequestError(Code.INVALID_REQUEST, "the chunks have another digest", param="digest")
        expires_s = now_s + files.retention_s(tenant)
        about: ObjectInfo = objects.describe(
            files.objects.chunks.name,
            name,
            size,
            given.chunks,
            digest.digest(),
            {
                "filename": given.input_file,
                "purpose": BATCH_FILE,
                "created": str(int(now_s)),
                "expires": str(int(expires_s)),
            },
        )
        await files.objects.chunks.describe(name, encode(about))


def spell_digest(hexadecimal: str) -> str | None:
    """A digest as descriptions have it; None for what is none."""
    try:
        return f"SHA-256={base64.urlsafe_b64encode(bytes.fromhex(hexadecimal)).decode()}"
    except ValueError:
        return None
