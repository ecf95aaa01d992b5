"""Server-sent events: frames become the bytes of OpenAI's chunks.

One event for each token, and one write for all frames that are there. What is the same in every chunk of a stream is
encoded once; a token then costs the encoding of its text. The SSE id is the frame's sequence in the tape; inside a
frame of several tokens it is `<sequence>.<events sent>` until the last token, and again for the usage that follows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal, TypeAlias

import msgspec

from inferflux.broker.wire.requests import Failure, FinishReason, Frame, TokenLogprob

from .admission import TIER_OF_CLASS
from .answers import ChatLogprobs, CompletionLogprobs, TextOffsets, UsageAnswer
from .assembly import fingerprint
from .exchange import Ticket
from .identity import CHAT_ID, COMPLETION_ID
from .mark import Mark
from .outlook import Outlook
from .problems import problem
from .replies import TapeFrame

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

Logprobs: TypeAlias = tuple[TokenLogprob, ...]

_json = msgspec.json.Encoder().encode


def waiting(outlook: Outlook | None) -> bytes:
    """The comment that is sent while there is nothing to say: where the request stands in the queue, if it does."""
    if outlook is None:
        return PING
    wait = "" if outlook.wait_s is None else f" wait_s={outlook.wait_s:.0f}"
    return f": queued position={outlook.position}{wait}\n\n".encode()


class _Head(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    service_tier: str


class Events:
    """Encodes the frames of one stream. Subclasses say what a choice looks like."""

    kind: Literal["chat.completion.chunk", "text_completion"]
    id_prefix: str

    def __init__(self, ticket: Ticket, *, include_usage: bool, after: Mark | None = None) -> None:
        self._ticket = ticket
        self._include_usage = include_usage
        self._after = after
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._head = b""

    def encode(self, batch: list[TapeFrame]) -> bytes:
        """The bytes of some frames; empty when they hold nothing to show. The terminal frame adds the end mark."""
        if self._after is not None:
            return b"".join([self._unseen(self._after, seq, frame) for seq, frame in batch])
        return b"".join([self._event(seq, frame) for seq, frame in batch])

    def failed(self, error: Failure) -> bytes:
        """The last words of a stream that breaks off: OpenAI's clients raise the error."""
        return b"data: " + _json(problem(error)) + b"\n\n"

    def _choice(self, choice: int, text: str, finish_reason: FinishReason | None, logprobs: Logprobs | None) -> bytes:
        raise NotImplementedError

    def _opening(self, seq: int, frame: Frame) -> bytes:
        """What goes before a choice's first event."""
        return b""

    def _unseen(self, after: Mark, seq: int, frame: Frame) -> bytes:
        # What was read before is encoded too: choices that were opened and character offsets follow from it.
        event = self._event(seq, frame)
        return event if frame.error is not None else after.unseen(seq, len(frame.pieces or (1,)), event)

    def _event(self, seq: int, frame: Frame) -> bytes:
        if frame.error is not None:
            return self.failed(frame.error)
        if not self._head:
            self._head = self._begin(frame.backend or self._ticket.model.backend)
        event = b""
        if frame.pieces is not None:
            event = self._opening(seq, frame) + b"".join(self._pieces(seq, frame, frame.pieces))
        elif frame.text or frame.finish_reason or frame.logprobs:
            choice = self._choice(frame.choice, frame.text, frame.finish_reason, frame.logprobs)
            event = self._opening(seq, frame) + b"id: %d\n%s%s%s" % (seq, self._head, choice, self._tail)
        if frame.usage is None:
            return event
        if self._include_usage:
            usage = _json(UsageAnswer.of(frame.usage))
            number = len(frame.pieces or (1,)) + 1
            event += b'id: %d.%d\n%s],"usage":%s}\n\n' % (seq, number, self._head, usage)
        return event + DONE

    def _pieces(self, seq: int, frame: Frame, pieces: tuple[str, ...]) -> Iterator[bytes]:
        """An event for each token of a frame; the finish reason comes with the last."""
        last = len(pieces) - 1
        for number, text in enumerate(pieces):
            logprobs = None if frame.logprobs is None else frame.logprobs[number : number + 1]
            choice = self._choice(frame.choice, text, frame.finish_reason if number == last else None, logprobs)
            mark = b"id: %d\n" % seq if number == last else b"id: %d.%d\n" % (seq, number + 1)
            yield mark + self._head + choice + self._tail

    def _begin(self, backend: str) -> bytes:
        ticket = self._ticket
        head = _Head(
            self.id_prefix + ticket.key.request,
            self.kind,
            int(ticket.created_s),
            ticket.model.id,
            fingerprint(backend, ticket.model.id),
            TIER_OF_CLASS[ticket.lane.service_class],
        )
        return b"data: " + _json(head)[:-1] + b',"choices":['


class ChatEvents(Events):
    """Chunks of a chat; each choice begins with its role."""

    kind = "chat.completion.chunk"
    id_prefix = CHAT_ID

    def __init__(self, ticket: Ticket, *, include_usage: bool, after: Mark | None = None) -> None:
        super().__init__(ticket, include_usage=include_usage, after=after)
        self._opened: set[int] = set()

    def _opening(self, seq: int, frame: Frame) -> bytes:
        if frame.choice in self._opened:
            return b""
        self._opened.add(frame.choice)
        return (
            b'%s{"index":%d,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,'
            b'"finish_reason":null}%s' % (self._head, frame.choice, self._tail)
        )

    def _choice(self, choice: int, text: str, finish_reason: FinishReason | None, logprobs: Logprobs | None) -> bytes:
        return b'{"index":%d,"delta":{%s},"logprobs":%s,"finish_reason":%s}' % (
            choice,
            b'"content":' + _json(text) if text else b"",
            b"null" if logprobs is None else _json(ChatLogprobs.of(logprobs)),
            b"null" if finish_reason is None else _json(finish_reason),
        )


class CompletionEvents(Events):
    """Chunks of completions."""

    kind = "text_completion"
    id_prefix = COMPLETION_ID

    def __init__(self, ticket: Ticket, *, include_usage: bool, after: Mark | None = None) -> None:
        super().__init__(ticket, include_usage=include_usage, after=after)
        self._offsets: defaultdict[int, TextOffsets] = defaultdict(TextOffsets)

    def _choice(self, choice: int, text: str, finish_reason: FinishReason | None, logprobs: Logprobs | None) -> bytes:
        return b'{"index":%d,"text":%s,"logprobs":%s,"finish_reason":%s}' % (
            choice,
            _json(text),
            b"null" if logprobs is None else _json(CompletionLogprobs.of(logprobs, self._offsets[choice])),
            b"null" if finish_reason is None else _json(finish_reason),
        )
