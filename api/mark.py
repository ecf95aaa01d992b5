"""The mark: how far a client has read, as it says in `Last-Event-ID`."""

from __future__ import annotations

import re
from typing import NamedTuple

from inferflux.broker.errors import Code, RequestError

_MARK = re.compile(r"(\d{1,19})(?:\.(\d{1,9}))?")


class Mark(NamedTuple):
    """A frame's sequence in the tape, and how many of its events were read; None is all that show its tokens."""

    seq: int
    num_events: int | None = None

    @classmethod
    def parse(cls, text: str) -> Mark:
        """From an SSE id, `SEQ` or `SEQ.EVENTS`. Raises RequestError for any other text."""
        match = _MARK.fullmatch(text.strip())
        if match is None:
            raise RequestError(
                Code.INVALID_REQUEST,
                "'last_event_id': send the id of the last event that you have read, just as it came",
                param="last_event_id",
            )
        return cls(int(match[1]), None if match[2] is None else int(match[2]))

    def unseen(self, seq: int, num_pieces: int, events: bytes) -> bytes:
        """What of one frame's events lies behind the mark. Those without an id come before the first, or at the end."""
        if seq != self.seq:
            return events if seq > self.seq else b""
        num_seen = num_pieces if self.num_events is None else self.num_events
        kept = [each for each in events.split(b"\n\n") if each and _number(each, num_pieces) > num_seen]
        return b"".join(each + b"\n\n" for each in kept)


def _number(event: bytes, num_pieces: int) -> float:
    """An event's place among those of its frame."""
    if not event.startswith(b"id: "):
        return 0 if b'"choices":' in event else float("inf")
    _, dot, number = event[4 : event.index(b"\n")].partition(b".")
    return int(number) if dot else num_pieces
