"""The assembly: an exchange's frames, put together into one answer."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Callable

import msgspec

from inferflux.broker.wire.requests import FinishReason, Frame, TokenLogprob, Usage

from .admission import TIER_OF_CLASS
from .answers import (
    ChatAnswerMessage,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    EmbeddingItem,
    EmbeddingList,
    EmbeddingUsage,
    TextOffsets,
    UsageAnswer,
)
from .exchange import Exchange, Ticket
from .identity import CHAT_ID, COMPLETION_ID
from .parameters import unsupported
from .problems import FailureError
from .replies import TapeFrame

WAKE_S = 3600.0


class ChoiceParts(msgspec.Struct):
    """What has come of one choice."""

    texts: list[str] = []
    logprobs: list[TokenLogprob] = []
    finish_reason: FinishReason | None = None
    embedding: tuple[float, ...] = ()


class Assembly:
    """`backend` is known from the first frame on."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.backend: str = ticket.model.backend
        self.usage = Usage()
        self._choices: dict[int, ChoiceParts] = {}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.backend, self.ticket.model.id)

    def choices(self) -> list[tuple[int, ChoiceParts]]:
        return sorted(self._choices.items())

    def add(self, batch: list[TapeFrame]) -> None:
        """Raises FailureError when the request has failed."""
        for _, frame in batch:
            if frame.error is not None:
                raise FailureError(frame.error)
            self._add(frame)

    def _add(self, frame: Frame) -> None:
        if frame.backend is not None:
            self.backend = frame.backend
        if frame.usage is not None:
            self.usage = frame.usage
            if not (frame.text or frame.finish_reason or frame.num_tokens or frame.embedding is not None):
                return
        choice = self._choices.setdefault(frame.choice, ChoiceParts())
        choice.texts.append(frame.text)
        choice.logprobs.extend(frame.logprobs or ())
        choice.finish_reason = frame.finish_reason or choice.finish_reason
        choice.embedding = frame.embedding or choice.embedding


async def assemble(exchange: Exchange) -> Assembly:
    """Read an exchange to its end. Raises FailureError, and ClientGone when nobody waits any more."""
    assembly = Assembly(exchange.ticket)
    while not exchange.ended:
        assembly.add(await exchange.read(time.monotonic() + WAKE_S))
    return assembly


Shape = Callable[[Assembly], msgspec.Struct]


def fingerprint(backend: str, model: str) -> str:
    """What answered, for `system_fingerprint`."""
    return f"{backend}:{model}"


def chat_answer(assembly: Assembly, *, logprobs: bool) -> ChatCompletion:
    ticket = assembly.ticket
    return ChatCompletion(
        id=CHAT_ID + ticket.key.request,
        created=int(ticket.created_s),
        model=ticket.model.id,
        system_fingerprint=assembly.fingerprint,
        service_tier=TIER_OF_CLASS[ticket.lane.service_class],
        choices=[
            ChatChoice(
                number,
                ChatAnswerMessage("".join(choice.texts)),
                choice.finish_reason,
                ChatLogprobs.of(tuple(choice.logprobs)) if logprobs else None,
            )
            for number, choice in assembly.choices()
        ],
        usage=UsageAnswer.of(assembly.usage),
    )


def completion_answer(assembly: Assembly, *, logprobs: bool) -> Completion:
    ticket = assembly.ticket
    return Completion(
        id=COMPLETION_ID + ticket.key.request,
        created=int(ticket.created_s),
        model=ticket.model.id,
        system_fingerprint=assembly.fingerprint,
        service_tier=TIER_OF_CLASS[ticket.lane.service_class],
        choices=[
            CompletionChoice(
                number,
                "".join(choice.texts),
                choice.finish_reason,
                CompletionLogprobs.of(tuple(choice.logprobs), TextOffsets()) if logprobs else None,
            )
            for number, choice in assembly.choices()
        ],
        usage=UsageAnswer.of(assembly.usage),
    )


def embedding_answer(assembly: Assembly, *, base64_floats: bool, dimensions: int | None) -> EmbeddingList:
    """Raises RequestError where vectors of another length were asked for."""
    lengths = {len(choice.embedding) for _, choice in assembly.choices()}
    if dimensions is not None and lengths != {dimensions}:
        raise unsupported("dimensions", f"must be left out or be {lengths.pop()}, the length of this model's vectors")
    return EmbeddingList(
        data=[
            EmbeddingItem(number, _base64(choice.embedding) if base64_floats else choice.embedding)
            for number, choice in assembly.choices()
        ],
        model=assembly.ticket.model.id,
        usage=EmbeddingUsage(assembly.usage.prompt_tokens, assembly.usage.prompt_tokens),
    )


def _base64(embedding: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode()
