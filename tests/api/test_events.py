from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from inferflux.api.answers import CompletionLogprobs, TextOffsets
from inferflux.api.events import ChatEvents, CompletionEvents, Events
from inferflux.api.exchange import Ticket
from inferflux.api.replies import TapeFrame
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.broker.wire.requests import Frame, TokenLogprob, Usage
from inferflux.registry.models import ModelEntry

TICKET = Ticket(
    key=RequestKey("a-r", "request"),
    lane=Lane("m", ServiceClass.DEFAULT, "acme"),
    model=ModelEntry(id="m", path=Path("m.gguf"), backend="llamacpp"),
    prompt_seq=1,
    created_s=1.0,
    accepted_s=1.0,
)
LOGPROBS = tuple(TokenLogprob(token=text, logprob=-1.0, bytes=tuple(text.encode())) for text in ("a", "", "b"))
FRAME = Frame(
    id="request",
    attempt=1,
    num_tokens=3,
    text="ab",
    pieces=("a", "", "b"),
    finish_reason="stop",
    usage=Usage(completion_tokens=3),
)


def sent(events: Events, *batch: TapeFrame) -> list[tuple[str, Any]]:
    """(SSE id, choice) of each event that has one."""
    found = []
    for event in events.encode(list(batch)).decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in event.splitlines())
        if fields and fields["data"] != "[DONE]":
            data = msgspec.json.decode(fields["data"])
            found += [(fields.get("id", ""), choice) for choice in data["choices"]]
    return found


def test_tokens_that_travelled_together_are_events_of_their_own() -> None:
    events = sent(CompletionEvents(TICKET, include_usage=False), TapeFrame(7, FRAME))
    assert [choice["text"] for _, choice in events] == ["a", "", "b"]
    assert [choice["finish_reason"] for _, choice in events] == [None, None, "stop"]


def test_only_the_last_token_of_a_frame_moves_a_resuming_client_past_it() -> None:
    events = sent(CompletionEvents(TICKET, include_usage=False), TapeFrame(7, FRAME))
    assert [sse_id for sse_id, _ in events] == ["7.1", "7.2", "7"]


def test_log_probabilities_stay_with_their_tokens() -> None:
    frame = msgspec.structs.replace(FRAME, logprobs=LOGPROBS)
    events = sent(CompletionEvents(TICKET, include_usage=False), TapeFrame(7, frame))
    assert [choice["logprobs"]["tokens"] for _, choice in events] == [["a"], [""], ["b"]]
    assert [choice["logprobs"]["text_offset"] for _, choice in events] == [[0], [1], [1]]


def test_parts_of_a_character_begin_where_it_does_and_are_told_apart() -> None:
    def token(data: bytes, *top: bytes) -> TokenLogprob:
        alternatives = tuple(token(each) for each in top)
        return TokenLogprob(token=data.decode(errors="replace"), logprob=-1.0, bytes=tuple(data), top=alternatives)

    tokens = (token(b"a"), token(b"\xe2\x82", b"\xe2\x82", b"\xe2\x83"), token(b"\xac"), token(b"b"))
    frames = [
        Frame(id="request", attempt=1, index=index, num_tokens=1, text=text, logprobs=tokens[index : index + 1])
        for index, text in enumerate(("a", "", "€", "b"))
    ]

    events = sent(CompletionEvents(TICKET, include_usage=False), *(TapeFrame(7, frame) for frame in frames))
    streamed = [choice["logprobs"] for _, choice in events]
    whole = CompletionLogprobs.of(tokens, TextOffsets())

    assert whole.text_offset == [0, 1, 1, 2]
    assert [logprobs["text_offset"] for logprobs in streamed] == [[0], [1], [1], [2]]
    assert whole.tokens == ["a", r"bytes:\xe2\x82", r"bytes:\xac", "b"]
    assert [logprobs["tokens"] for logprobs in streamed] == [[name] for name in whole.tokens]
    assert whole.top_logprobs is not None
    assert whole.top_logprobs[1] == {r"bytes:\xe2\x82": -1.0, r"bytes:\xe2\x83": -1.0}


def test_a_chat_still_opens_with_its_role() -> None:
    events = sent(ChatEvents(TICKET, include_usage=True), TapeFrame(7, FRAME))
    deltas = [choice["delta"] for _, choice in events]
    assert deltas[0]["role"] == "assistant"
    assert deltas[1:] == [{"content": "a"}, {}, {"content": "b"}]
