"""Names: of batches, of their requests, their journals and their files."""

from __future__ import annotations

import hashlib
import secrets
import time

from inferflux.broker.subjects import journal_name
from inferflux.broker.wire.batches import Batch

BATCH_PREFIX = "batch_"
FILE_PREFIX = "file-"


def new_batch() -> str:
    """Ids sort by the time at which they were made, to the microsecond: lists show them in this order."""
    return f"{BATCH_PREFIX}{_stamp(time.time())}{secrets.token_hex(8)}"


def new_file() -> str:
    return f"{FILE_PREFIX}{_stamp(time.time())}{secrets.token_hex(8)}"


def token(batch: Batch) -> str:
    """What stands for a batch in the ids of its requests, however its publisher named it."""
    return "b" + hashlib.sha256(f"{batch.tenant}\n{batch.id}".encode()).hexdigest()[:24]


def request_name(batch: Batch, line: int) -> str:
    """The id of a line in the output and error files."""
    return f"batch_req_{token(batch)}{line:06d}"


def journal_of(batch: Batch) -> str:
    return journal_name(token(batch))


def result_file(batch: Batch, kind: str) -> str:
    """The id of a batch's `output` or `error` file: the same whoever writes it."""
    digest = hashlib.sha256(f"{token(batch)}\n{kind}".encode()).hexdigest()[:16]
    return f"{FILE_PREFIX}{_stamp(batch.finalizing or 0.0)}{digest}"


def _stamp(now_s: float) -> str:
    return f"{int(now_s * 1_000_000):014x}"
