"""Whose a stored prompt is: the tenant that published it, or the API replica whose genuine stamp it bears."""

from __future__ import annotations

import contextlib

import msgspec

from .broker import StoredPrompt
from .stamp import Stamp, Stamper
from .subjects import (
    HEADER_MSG_ID,
    HEADER_STAMP,
    OWNER_TENANT,
    Lane,
    RequestKey,
    decode_token,
    encode_token,
    infer,
    owner_token,
    tenant_owner,
)

MAX_ID = 128


class PromptHead(msgspec.Struct, frozen=True):
    """What can be known of a prompt without understanding it."""

    id: str | None = None
    deadline: float | None = None


def head(body: bytes) -> PromptHead:
    """Empty for what is no prompt."""
    try:
        return msgspec.json.decode(body, type=PromptHead)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return PromptHead()


def request_key(prompt: StoredPrompt, stamper: Stamper) -> RequestKey:
    """The key under which a worker would answer a stored prompt."""
    msg_id = prompt.headers.get(HEADER_MSG_ID, "")
    stamp = stamper.check(prompt.headers.get(HEADER_STAMP), subject=infer(prompt.lane), msg_id=msg_id, body=prompt.body)
    owner = owner_of(prompt.lane, stamp)
    return RequestKey(owner, request_id(prompt.body, msg_id, owner, prompt.seq))


def owner_of(lane: Lane, stamp: Stamp | None) -> str:
    return stamp.owner if stamp is not None else tenant_owner(lane.tenant)


def request_id(body: bytes, msg_id: str, owner: str, seq: int) -> str:
    """The id in the body; where it cannot be used the message id, and where that cannot be used either the prompt's
    sequence: always one that a subject can spell."""
    ident = head(body).id
    if ident is not None and usable(ident):
        return ident
    if owner.startswith(OWNER_TENANT):
        token = msg_id.removeprefix(f"{owner_token(owner)}.")
        with contextlib.suppress(ValueError):
            msg_id = decode_token(token)
    return msg_id if usable(msg_id) else f"seq-{seq}"


def usable(ident: str) -> bool:
    """Whether this can be a request's id."""
    try:
        encode_token(ident)
    except ValueError:
        return False
    return len(ident) <= MAX_ID
