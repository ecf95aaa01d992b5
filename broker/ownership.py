"""Whose a stored prompt is: the tenant that published it, or the API replica whose genuine stamp it bears."""

from __future__ import annotations

import msgspec

from .broker import StoredPrompt
from .stamp import Stamp, Stamper
from .subjects import HEADER_MSG_ID, HEADER_STAMP, OWNER_TENANT, Lane, RequestKey, infer, tenant_owner

MAX_ID = 128


class PromptHead(msgspec.Struct, frozen=True):
    """What can be known of a prompt without understanding it."""

    id: str | None = None
    deadline: float | None = None


def head(body: bytes) -> PromptHead:
    """Empty for what is no prompt."""
    try:
        return msgspec.json.decode(body, type=PromptHead)
    except (msgspec.DecodeError, UnicodeDecodeError):
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
    """The id in the body; where it cannot be read the message id, and where there is none the prompt's sequence."""
    ident = head(body).id
    if ident and len(ident) <= MAX_ID:
        return ident
    if msg_id and owner.startswith(OWNER_TENANT):
        return msg_id.removeprefix(f"{owner}.")[:MAX_ID]
    return msg_id[:MAX_ID] or f"seq-{seq}"
