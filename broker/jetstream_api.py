"""JetStream's request and reply protocol: API calls, and publishes that the stream acknowledges."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from . import subjects
from .errors import BrokerError, BrokerUnavailable
from .link import Link, NoAnswer
from .packet import Packet, encode_headers

ERR_NO_PEERS = 10005
ERR_MAX_CONSUMERS = 10026
ERR_NO_MESSAGE = 10037
ERR_NO_SEQUENCE = 10043
ERR_DELETE_FAILED = 10057
ERR_STREAM_EXISTS = 10058
ERR_STREAM_NOT_FOUND = 10059
ERR_STREAM_STORE_FAILED = 10077
ERR_WRONG_LAST_SEQ = frozenset({10071, 10164})
ERR_INSUFFICIENT_RESOURCES = frozenset({10023, 10047})
ERR_DUPLICATE_IN_PROCESS = 10158

RETRY_PAUSE_S = 0.05
TRY_S = 1.0

_ACTUAL_SEQ = re.compile(r"wrong last sequence: (\d+)$")


class ApiError(BrokerError):
    """JetStream said no: `code` is like an HTTP status, `err_code` is the server's own."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"JetStream: {description} ({err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description

    @property
    def temporary(self) -> bool:
        """Whether trying the same again soon can help: a leader is being elected, a duplicate is on its way, or
        the stream of a server that restarted is about to be made anew."""
        if self.err_code in (ERR_DUPLICATE_IN_PROCESS, ERR_STREAM_NOT_FOUND):
            return True
        return self.code == 503 and self.err_code not in ERR_INSUFFICIENT_RESOURCES | {ERR_STREAM_STORE_FAILED}


class WrongSequence(ApiError):
    """A compare-and-set found another sequence than it expected: `actual_seq`, where the server tells."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.code, error.err_code, error.description)
        match = _ACTUAL_SEQ.search(error.description)
        self.actual_seq = int(match[1]) if match else None


class Ack(msgspec.Struct, frozen=True):
    """A stream's answer to a publish; `value` is a counter's new one."""

    seq: int
    duplicate: bool = False
    value: int | None = None


class StoredMessage(msgspec.Struct, frozen=True):
    """A message as a stream holds it, and the Unix time at which the server took it."""

    subject: str
    seq: int
    data: bytes
    headers: Mapping[str, str]
    stored_s: float


class JetStreamApi:
    """API calls over one link. What may work soon is `BrokerUnavailable`, as is silence; the rest is `ApiError`."""

    def __init__(self, link: Link, *, timeout_s: float) -> None:
        self._link = link
        self.timeout_s = timeout_s

    async def call(self, *tokens: str, body: Mapping[str, Any] | None = None, try_s: float = TRY_S) -> dict[str, Any]:
        """One API call, such as `call("STREAM", "INFO", name)`, and its decoded answer. Asks again after silence,
        since servers in a cluster leave some calls unanswered while a leader is being elected."""
        try:
            return await self._ask(subjects.js_api(*tokens), body, try_s)
        except ApiError as error:
            if error.temporary:
                raise BrokerUnavailable(str(error)) from error
            raise

    async def stream_info(self, stream: str, **body: Any) -> dict[str, Any] | None:
        """A stream's configuration and state, or None when there is no such stream."""
        try:
            return await self._ask(subjects.js_api("STREAM", "INFO", stream), body, TRY_S)
        except ApiError as error:
            if error.err_code == ERR_STREAM_NOT_FOUND:
                return None
            if error.temporary:
                raise BrokerUnavailable(str(error)) from error
            raise

    async def subject_counts(self, stream: str, wanted: str) -> dict[str, int]:
        """How many messages a stream holds on each subject that matches."""
        counts: dict[str, int] = {}
        while True:
            info = await self.call("STREAM", "INFO", stream, body={"subjects_filter": wanted, "offset": len(counts)})
            page: dict[str, int] = info["state"].get("subjects") or {}
            counts |= page
            if not page or len(counts) >= int(info.get("total", 0)):
                return counts

    async def publish(self, subject: str, data: bytes, headers: Mapping[str, str]) -> Ack:
        """Publish until the stream has answered. The headers must hold a message id, so that a second try after a
        lost answer finds the first one's copy."""
        raw_headers = encode_headers(headers)
        deadline = time.monotonic() + self.timeout_s
        while True:
            left_s = deadline - time.monotonic()
            try:
                await self._link.wait_connected(max(left_s, 0.001))
                packet = await self._link.request(
                    subject, data, headers=raw_headers, timeout_s=min(TRY_S, max(left_s, 0.001))
                )
                if packet.status is None:
                    answer = _checked(packet.data)
                    value = answer.get("val")
                    return Ack(
                        int(answer["seq"]),
                        bool(answer.get("duplicate", False)),
                        None if value is None else int(value),
                    )
                reason: BrokerError = BrokerUnavailable(f"no stream takes {subject}: {packet.description}")
            except BrokerUnavailable as error:
                reason = error
            except ApiError as error:
                if not error.temporary:
                    raise
                reason = error
            if deadline - time.monotonic() <= RETRY_PAUSE_S:
                raise BrokerUnavailable(f"not stored within {self.timeout_s:g} s: {reason}") from reason
            await asyncio.sleep(RETRY_PAUSE_S)

    async def put(self, stream: str, subject: str, data: bytes, headers: Mapping[str, str]) -> int:
        """Publish once, under a message id of its own unless `headers` give one, and return the sequence.

        Raises WrongSequence when a compare-and-set loses.
        """
        headers = {subjects.HEADER_MSG_ID: secrets.token_hex(12), **headers}
        try:
            return (await self.publish(subject, data, headers)).seq
        except ApiError as error:
            if error.err_code not in ERR_WRONG_LAST_SEQ:
                raise
            # The server compares sequences before message ids, so a second try may have lost to the first.
            newest = await self.stored(stream, last_by_subj=subject)
            if newest is not None and newest.headers.get(subjects.HEADER_MSG_ID) == headers[subjects.HEADER_MSG_ID]:
                return newest.seq
            raise WrongSequence(error) from error

    async def stored(self, stream: str, **which: Any) -> StoredMessage | None:
        """A message by `seq` or `last_by_subj`, read from the stream's leader and so never stale."""
        try:
            answer = await self.call("STREAM", "MSG", "GET", stream, body=which)
        except ApiError as error:
            if error.err_code == ERR_NO_MESSAGE:
                return None
            raise
        message = answer["message"]
        raw_headers = base64.b64decode(message.get("hdrs", ""))
        return StoredMessage(
            message["subject"],
            int(message["seq"]),
            base64.b64decode(message.get("data", "")),
            Packet("", "", b"", raw_headers).headers,
            datetime.fromisoformat(message["time"]).timestamp(),
        )

    async def _ask(self, subject: str, body: Mapping[str, Any] | None, try_s: float) -> dict[str, Any]:
        data = msgspec.json.encode(body) if body is not None else b""
        deadline = time.monotonic() + self.timeout_s
        while True:
            left_s = deadline - time.monotonic()
            try:
                packet = await self._link.request(subject, data, timeout_s=min(try_s, left_s))
                break
            except NoAnswer:
                if deadline - time.monotonic() <= RETRY_PAUSE_S:
                    raise
        if packet.status is not None:
            raise BrokerUnavailable(f"JetStream does not answer on {subject}: {packet.status} {packet.description}")
        return _checked(packet.data)


def _checked(data: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(data)
    error = answer.get("error")
    if error is not None:
        raise ApiError(int(error.get("code", 500)), int(error.get("err_code", 0)), str(error.get("description", "")))
    return answer
