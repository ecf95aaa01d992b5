"""Answers that are read again: after a break, at another replica, after their replica has died."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
from harness.scripted_worker import Turn

from inferflux.api.presence import OWNER
from inferflux.broker.errors import BrokerUnavailable
from inferflux.broker.subjects import BUCKET_PRESENCE, encode_token
from inferflux.broker.wire.requests import TokenLogprob, decode_frame

PROMPT = {"prompt": "Hi", "stream": True, "stream_options": {"include_usage": True}}
RESUMABLE = {"x_inferflux_resumable": "true"}
WORDS = [f"w{number} " for number in range(8)]


class Script:
    """Says the first words at once and the others when it may."""

    def __init__(self, num_first: int = 4) -> None:
        self.go = asyncio.Event()
        self._num_first = num_first

    async def __call__(self, turn: Turn) -> None:
        for number, word in enumerate(WORDS[:-1]):
            if number == self._num_first:
                await self.go.wait()
            await turn.say(word)
        await turn.end(text=WORDS[-1], num_tokens=1, finish_reason="stop")


def events(body: bytes) -> list[tuple[str, str]]:
    """(SSE id, text) of each chunk; the usage has no text."""
    found = []
    for event in body.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in event.splitlines() if not line.startswith(":"))
        if lines.get("data", "").startswith("{"):
            choices = msgspec.json.decode(lines["data"])["choices"]
            found.append((lines.get("id", ""), choices[0]["text"] if choices else "usage"))
    return found


async def end_of(api: Any, turn: Turn) -> str:
    """The code of the error that the tape ends with; empty without one."""
    async with asyncio.timeout(30):
        while True:
            frames = [decode_frame(entry.body) for entry in (await api.broker.read_tape(turn.key)).frames]
            for frame in frames:
                if frame.terminal:
                    return frame.error.code if frame.error is not None else ""
            await asyncio.sleep(0.01)


@pytest.fixture
def hasty(apis: Any) -> Any:
    """Settings with a grace that can be waited for."""

    async def start(grace_s: float = 0.2, **options: Any) -> Any:
        settings = apis.settings
        streams = msgspec.structs.replace(settings.streams, resume_grace_s=grace_s)
        return await apis.start(msgspec.structs.replace(settings, streams=streams), **options)

    return start


@pytest.mark.parametrize("num_read", range(1, len(WORDS) + 2))
@pytest.mark.parametrize("here", [True, False])
async def test_a_stream_goes_on_behind_what_was_read(apis: Any, here: bool, num_read: int) -> None:
    api = await apis.start()
    other = api if here else await apis.start(beside=api)
    api.worker.script = Script(num_first=99)
    whole = events((await api.client.post("/v1/completions", json=PROMPT)).content)
    assert [text for _, text in whole] == [*WORDS, "usage"]
    turn = api.worker.turns[0]

    resumed = await other.client.get(
        f"/v1/streams/cmpl-{turn.prompt.id}", headers={"last-event-id": whole[num_read - 1][0]}
    )

    assert resumed.status_code == 200, resumed.text
    assert events(resumed.content) == whole[num_read:]
    assert resumed.content.endswith(b"data: [DONE]\n\n")


async def test_a_live_stream_is_taken_over_by_another_replica(apis: Any) -> None:
    api = await apis.start()
    other = await apis.start(beside=api)
    api.worker.script = script = Script()
    call = api.call("/v1/completions", PROMPT, **RESUMABLE)
    first = await call.until(b"w3")
    turn = await api.until_running()
    call.hang_up()
    await call.task

    again = other.call(f"/v1/streams/{turn.prompt.id}", last_event_id=events(first)[-1][0])
    await again.begin()
    script.go.set()
    rest = await again.until(b"[DONE]")

    assert [text for _, text in events(first) + events(rest)] == [*WORDS, "usage"]
    assert await end_of(api, turn) == ""


async def test_tokens_that_travel_together_are_cut_where_the_client_stopped(api: Any) -> None:
    async def script(turn: Turn) -> None:
        await turn.say("abc", num_tokens=3, pieces=("a", "b", "c"))
        await turn.end(text="de", num_tokens=2, pieces=("d", "e"), finish_reason="stop")

    api.worker.script = script
    whole = events((await api.client.post("/v1/completions", json=PROMPT)).content)
    for number in range(1, len(whole)):
        path = f"/v1/streams/{api.worker.turns[0].prompt.id}?last_event_id={whole[number - 1][0]}"
        assert events((await api.client.get(path)).content) == whole[number:]


async def test_a_chat_opens_once(api: Any) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    whole = (await api.client.post("/v1/chat/completions", json=body)).text
    stream = f"/v1/streams/chatcmpl-{api.worker.turns[0].prompt.id}"
    first = whole.split("id: ")[1].split("\n")[0]

    again = (await api.client.get(stream)).text
    rest = (await api.client.get(stream, headers={"last-event-id": first})).text

    assert again == whole
    assert rest == whole[whole.index("id: ", whole.index("id: ") + 1) :]
    assert "assistant" not in rest


LOGPROB = TokenLogprob(token="a", logprob=-1.0, bytes=(97,))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_choices_and_log_probabilities_go_on_where_they_were(api: Any, path: str) -> None:
    async def script(turn: Turn) -> None:
        await turn.say("a", logprobs=(LOGPROB,))
        await turn.say("aaa", num_tokens=3, choice=1, pieces=("a", "a", "a"), logprobs=(LOGPROB,) * 3)
        await turn.say("a", finish_reason="length", logprobs=(LOGPROB,))
        await turn.end(text="a", num_tokens=1, choice=1, finish_reason="stop", logprobs=(LOGPROB,))

    api.worker.script = script
    chat = path == "/v1/chat/completions"
    body = PROMPT | {"n": 2, "logprobs": True if chat else 0}
    if chat:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    whole = (await api.client.post(path, json=body)).text.split("\n\n")
    name = api.worker.turns[0].prompt.id
    ids = [(number, each.split("\n")[0].removeprefix("id: ")) for number, each in enumerate(whole) if "id: " in each]

    assert len(ids) == 7
    for number, sse_id in ids:
        rest = (await api.client.get(f"/v1/streams/{name}?last_event_id={sse_id}")).text.split("\n\n")
        assert rest == whole[number + 1 :], sse_id


async def test_an_answer_that_nobody_streamed_can_be_streamed(api: Any) -> None:
    whole = (await api.client.post("/v1/completions", json={"prompt": "Hi"})).json()
    again = await api.client.get(f"/v1/streams/{whole['id']}")

    assert "".join(text for _, text in events(again.content)) == whole["choices"][0]["text"]
    assert str(whole["created"]) in again.text


async def test_foreign_and_made_up_ids_are_told_nothing(apis: Any) -> None:
    api = await apis.start()
    name = (await api.chat()).json()["id"]
    foreign = {"authorization": "Bearer key-bounded"}
    answers = [
        await api.client.get(f"/v1/streams/{name}", headers=foreign),
        await api.client.get(f"/v1/streams/{name[:-1]}{'a' if name[-1] != 'a' else 'b'}"),
        await api.client.get("/v1/streams/nothing"),
    ]

    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.text for answer in answers}) == 1


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [("x", 400, "invalid_request"), ("5.5.5", 400, "invalid_request"), ("99999", 502, "stream_diverged")],
)
async def test_a_mark_that_is_none_is_refused(api: Any, header: str, status: int, code: str) -> None:
    name = (await api.chat()).json()["id"]
    answer = await api.client.get(f"/v1/streams/{name}", headers={"last-event-id": header})

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_purged_stream_is_gone(api: Any) -> None:
    name = (await api.chat()).json()["id"]
    await api.broker.purge_tape(api.worker.turns[0].key)
    answer = await api.client.get(f"/v1/streams/{name}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "stream_gone")


async def test_an_outage_while_resuming_leaves_nobody_reading(apis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api = await apis.start()
    other = await apis.start(beside=api)
    name = (await api.chat()).json()["id"]

    async def away(*_: Any, **__: Any) -> Any:
        raise BrokerUnavailable("away")

    monkeypatch.setattr(other.broker, "listen_replies", away)
    answer = await other.client.get(f"/v1/streams/{name}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
    assert not other.parts.presence._read
    assert other.parts.relay.num_streams == 0


async def test_embeddings_have_no_stream(api: Any) -> None:
    async def embed(turn: Turn) -> None:
        await turn.end(embedding=(1.0, 2.0))

    api.worker.script = embed
    response = await api.client.post("/v1/embeddings", json={"input": "Hi"})
    answer = await api.client.get(f"/v1/streams/{response.headers['x-request-id']}")

    assert answer.status_code == 400


async def test_a_resumable_request_is_cancelled_after_the_grace(hasty: Any) -> None:
    api = await hasty()
    api.worker.script = Script()
    call = api.call("/v1/completions", PROMPT, **RESUMABLE)
    await call.until(b"w3")
    turn = await api.until_running()
    left_s = time.monotonic()
    call.hang_up()
    await call.task

    assert await end_of(api, turn) == "cancelled"
    assert time.monotonic() - left_s >= 0.2
    assert await api.broker.backlog() == {}


@pytest.mark.parametrize("here", [True, False])
async def test_a_client_ends_its_request_for_all_who_read_it(apis: Any, here: bool) -> None:
    api = await apis.start()
    other = api if here else await apis.start(beside=api)
    api.worker.script = Script()
    call = api.call("/v1/completions", PROMPT, **RESUMABLE)
    await call.until(b"w3")
    turn = await api.until_running()

    answer = await other.client.delete(f"/v1/streams/cmpl-{turn.prompt.id}")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert b'"code":"cancelled"' in await call.until(b"error")
    assert await end_of(api, turn) == "cancelled"
    assert await api.broker.backlog() == {}
    again = await api.client.delete(f"/v1/streams/{turn.prompt.id}")
    assert (again.status_code, again.json()["state"]) == (200, "ended")
    assert (await api.client.delete("/v1/streams/nothing")).status_code == 404


async def test_a_reader_who_came_back_keeps_it_running(hasty: Any) -> None:
    api = await hasty(grace_s=30)
    other = await hasty(grace_s=30, beside=api)
    api.worker.script = script = Script()
    call = api.call("/v1/completions", PROMPT, **RESUMABLE)
    await call.until(b"w3")
    turn = await api.until_running()
    call.hang_up()
    await call.task
    again = other.call(f"/v1/streams/{turn.prompt.id}")
    await again.until(b"w3")
    for minute in range(3):
        await api.parts.vigil.look(time.monotonic() + 60 * minute)
    assert api.parts.vigil.num_left == 1
    script.go.set()

    await again.until(b"[DONE]")
    assert await end_of(api, turn) == ""


@pytest.mark.parametrize("num_here", [0, 1])
async def test_a_first_reader_who_leaves_does_not_end_it_for_a_second(hasty: Any, num_here: int) -> None:
    api = await hasty(grace_s=30)
    other = await hasty(beside=api)
    api.worker.script = script = Script()
    call = api.call("/v1/completions", PROMPT)
    await call.until(b"w3")
    turn = await api.until_running()
    readers = [replica.call(f"/v1/streams/{turn.prompt.id}") for replica in (*[api] * num_here, other)]
    for reader in readers:
        await reader.until(b"w3")
    call.hang_up()
    await call.task
    for reader in readers[:-1]:
        reader.hang_up()
        await reader.task
    await api.parts.canceller.drain(5)
    assert not api.worker.cancelled
    script.go.set()

    assert [text for _, text in events(await readers[-1].until(b"[DONE]"))][-2:] == [WORDS[-1], "usage"]


async def die(api: Any) -> None:
    """As kill -9: nothing is told to anybody, and the entry in the presence bucket has expired."""
    for part in (api.parts.presence, api.parts.vigil, api.parts.sweeper):
        await part.rounds.close()
    bucket = await api.broker.bucket(BUCKET_PRESENCE)
    await bucket.delete(OWNER + encode_token(f"a-{api.parts.dispatcher.replica}"))


async def test_streams_of_a_dead_replica_wait_for_the_grace_and_then_end(hasty: Any) -> None:
    api = await hasty()
    other = await hasty(grace_s=30, beside=api)
    api.worker.script = script = Script()
    calls = [api.call("/v1/completions", PROMPT) for _ in range(2)]
    for call in calls:
        await call.until(b"w3")
    turns = list(api.worker.turns)
    await die(api)
    again = other.call(f"/v1/streams/{turns[1].prompt.id}")
    await again.until(b"w3")
    now_s = time.monotonic()
    await other.parts.vigil.look(now_s)
    await other.parts.vigil.look(now_s + 29)
    assert not api.worker.cancelled

    await other.parts.vigil.look(now_s + 31)

    assert await end_of(api, turns[0]) == "cancelled"
    await asyncio.sleep(0)
    assert set(api.worker.cancelled) == {turns[0].key}
    script.go.set()
    await again.until(b"[DONE]")
    assert await end_of(api, turns[1]) == ""


async def test_a_queued_prompt_of_a_dead_replica_leaves_the_queue(hasty: Any) -> None:
    api = await hasty(worker=False)
    other = await hasty(beside=api)
    call = api.call("/v1/completions", PROMPT)
    async with asyncio.timeout(30):
        while not api.parts.dispatcher.num_open:
            await asyncio.sleep(0.005)
    await die(api)
    now_s = time.monotonic()
    await other.parts.vigil.look(now_s)
    await other.parts.vigil.look(now_s + 1)

    assert await api.broker.backlog() == {}
    assert b"nobody came back" in await call.until(b"cancelled")


async def test_who_cannot_tell_that_it_is_there_takes_nobody_for_dead(hasty: Any) -> None:
    api = await hasty()
    other = await hasty(grace_s=0, beside=api)
    api.worker.script = Script()
    await api.call("/v1/completions", PROMPT).until(b"w3")
    await die(api)
    await other.parts.presence.rounds.close()
    other.parts.presence._beaten_s = time.monotonic() - 60

    await other.parts.vigil.look(time.monotonic())

    assert not api.worker.cancelled


async def test_a_drain_that_times_out_leaves_resumable_streams_to_others(hasty: Any) -> None:
    api = await hasty()
    other = await hasty(beside=api)
    api.worker.script = script = Script()
    call = api.call("/v1/completions", PROMPT, **RESUMABLE)
    first = await call.until(b"w3")
    turn = await api.until_running()

    draining = asyncio.create_task(api.parts.dispatcher.drain(0.05))
    assert b'"code":"draining"' in await call.until(b"error")
    await draining
    again = other.call(f"/v1/streams/{turn.prompt.id}", last_event_id=events(first)[-1][0])
    await again.begin()
    script.go.set()
    rest = await again.until(b"[DONE]")

    assert [text for _, text in events(first) + events(rest)] == [*WORDS, "usage"]
