"""Dead letters: requests that were given up, with the whole prompt, for people to look at, retry or drop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import msgspec

from inferflux.broker.broker import Broker, Bucket
from inferflux.broker.subjects import BUCKET_DEADLETTERS, HEADER_STAMP, Lane, RequestKey, key_id
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.requests import Claim, DeadLetter, Failure, LostAttempt, decode_dead_letter
from inferflux.config.logs import get_logger

log = get_logger("registry.dead")


class Letter(msgspec.Struct, frozen=True):
    """One dead letter: `id` is `subjects.key_id` of its request, `body` the prompt as it was published."""

    id: str
    about: DeadLetter
    body: bytes


class DeadLetters:
    """The bucket `deadletters`: an entry is one line of JSON, then the prompt's bytes. The server drops the oldest.

    Every call may raise BrokerError.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def bury(
        self,
        key: RequestKey,
        lane: Lane,
        headers: Mapping[str, str],
        body: bytes,
        *,
        reason: Failure,
        lost: Iterable[Claim],
    ) -> None:
        """Keep a prompt, and the claims that came to nothing. Doing it again, as after a crash, replaces the letter."""
        letter = DeadLetter(
            owner=key.owner,
            request=key.request,
            model=lane.model,
            service_class=lane.service_class.value,
            tenant=lane.tenant,
            reason=reason,
            at=time.time(),
            attempts=tuple(LostAttempt(worker=each.worker, at=each.at, state=each.state) for each in lost),
            headers={name: value for name, value in headers.items() if name != HEADER_STAMP},
        )
        await (await self._bucket()).put(key_id(key), encode(letter) + b"\n" + body)
        log.error(
            "dead letter",
            request=key.request,
            owner=key.owner,
            model=lane.model,
            tenant=lane.tenant,
            code=reason.code,
            workers=",".join(attempt.worker for attempt in letter.attempts if attempt.state == "running"),
        )

    async def all(self) -> list[Letter]:
        """Oldest first. Fetches every prompt: as much as the bucket may hold."""
        letters = (_read(entry.key, entry.value) for entry in await (await self._bucket()).entries())
        return [letter for letter in letters if letter is not None]

    async def get(self, letter_id: str) -> Letter | None:
        entry = await (await self._bucket()).get(letter_id)
        return None if entry is None else _read(entry.key, entry.value)

    async def ids(self) -> list[str]:
        """Oldest first, without the letters."""
        return await (await self._bucket()).keys()

    async def drop(self, letter_id: str) -> bool:
        """False when there is no such letter."""
        bucket = await self._bucket()
        if await bucket.get(letter_id) is None:
            return False
        await bucket.delete(letter_id)
        log.info("dead letter dropped", letter=letter_id)
        return True

    async def _bucket(self) -> Bucket:
        return await self._broker.bucket(BUCKET_DEADLETTERS)


def _read(letter_id: str, value: bytes | None) -> Letter | None:
    head, _, body = (value or b"").partition(b"\n")
    try:
        return Letter(letter_id, decode_dead_letter(head), body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("dead letter not understood", letter=letter_id, reason=str(error))
        return None
