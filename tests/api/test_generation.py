from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
from harness.scripted_worker import Turn, failing

from inferflux.broker.errors import Code
from inferflux.broker.subjects import ServiceClass
from inferflux.broker.wire.requests import ChatPrompt, CompletionPrompt, TokenLogprob, Usage

TOP = TokenLogprob(token="lo", logprob=-2.0, bytes=(108, 111))
LOGPROB = TokenLogprob(token="Hel", logprob=-0.5, bytes=(72, 101, 108), top=(TOP,))


def events(text: str) -> list[Any]:
    """The data of each event; the end mark as text."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [each if each == "[DONE]" else msgspec.json.decode(each) for each in data]


async def test_chat_answers_whole(api: Any) -> None:
    response = await api.chat(model="small", seed=7, user="u1")

    answer = response.json()
    assert response.status_code == 200
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "org/small"
    assert answer["system_fingerprint"] == "llamacpp:org/small"
    assert answer["service_tier"] == "default"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"content": "Hello", "role": "assistant", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert answer["id"] == "chatcmpl-" + response.headers["x-request-id"]
    assert "x-inferflux-backend" not in response.headers


async def test_chat_streams_chunks(api: Any) -> None:
    response = await api.chat(stream=True, stream_options={"include_usage": True})

    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hel"},
        {"content": "lo"},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, "stop"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 5
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-" + response.headers["x-request-id"]}


async def test_stream_without_usage_has_no_usage(api: Any) -> None:
    *chunks, _ = events((await api.chat(stream=True)).text)

    assert all("usage" not in chunk for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)


async def test_event_ids_are_tape_sequences(api: Any) -> None:
    response = await api.chat(stream=True)

    ids = [int(line.removeprefix("id: ")) for line in response.text.splitlines() if line.startswith("id: ")]
    tape = await api.broker.read_tape(api.worker.turns[0].key)
    assert ids == [entry.seq for entry in tape.frames]


async def test_completion_answers_and_streams(api: Any) -> None:
    whole = await api.client.post("/v1/completions", json={"prompt": "Say", "model": "org/small"})
    streamed = await api.client.post("/v1/completions", json={"prompt": "Say", "stream": True})

    assert whole.json()["object"] == "text_completion"
    assert whole.json()["choices"] == [{"index": 0, "text": "Hello", "finish_reason": "stop", "logprobs": None}]
    assert whole.json()["id"].startswith("cmpl-")
    *chunks, done = events(streamed.text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello"
    assert done == "[DONE]"


async def test_choices_come_in_order_and_prompts_apart(api: Any) -> None:
    async def backwards(turn: Turn) -> None:
        for choice in (3, 2, 1):
            await turn.say(f"c{choice}", choice=choice, finish_reason="length")
        await turn.end(text="c0", num_tokens=1, finish_reason="stop")

    api.worker.script = backwards
    response = await api.client.post("/v1/completions", json={"prompt": ["a", "b"], "n": 2})

    assert [(choice["index"], choice["text"]) for choice in response.json()["choices"]] == [
        (0, "c0"),
        (1, "c1"),
        (2, "c2"),
        (3, "c3"),
    ]


async def test_logprobs_in_both_shapes(api: Any) -> None:
    async def scored(turn: Turn) -> None:
        await turn.say("Hel", logprobs=(LOGPROB,))
        await turn.end(text="lo", num_tokens=1, logprobs=(TOP,), finish_reason="stop")

    api.worker.script = scored
    chat = await api.chat(logprobs=True, top_logprobs=1)
    streamed = await api.chat(logprobs=True, stream=True)
    completion = await api.client.post("/v1/completions", json={"prompt": "x", "logprobs": 1})

    (first, second) = chat.json()["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["logprob"], first["bytes"]) == ("Hel", -0.5, [72, 101, 108])
    assert first["top_logprobs"] == [{"token": "lo", "logprob": -2.0, "bytes": [108, 111]}]
    assert second["top_logprobs"] == []
    assert events(streamed.text)[1]["choices"][0]["logprobs"]["content"][0]["token"] == "Hel"
    logprobs = completion.json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["Hel", "lo"]
    assert logprobs["token_logprobs"] == [-0.5, -2.0]
    assert logprobs["top_logprobs"][0] == {"lo": -2.0}
    assert logprobs["text_offset"] == [0, 3]


async def test_embeddings_as_numbers_and_base64(api: Any) -> None:
    async def embedded(turn: Turn) -> None:
        await turn.say("", choice=1, num_tokens=0, embedding=(0.5, -1.0))
        await turn.end(Usage(prompt_tokens=4), embedding=(1.0, 2.0))

    api.worker.script = embedded
    body = {"input": ["a", "b"], "model": "small"}
    numbers = await api.client.post("/v1/embeddings", json=body)
    encoded = await api.client.post("/v1/embeddings", json=body | {"encoding_format": "base64", "dimensions": 2})
    refused = await api.client.post("/v1/embeddings", json=body | {"dimensions": 3})

    assert [item["embedding"] for item in numbers.json()["data"]] == [[1.0, 2.0], [0.5, -1.0]]
    assert numbers.json()["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    packed = base64.b64decode(encoded.json()["data"][1]["embedding"])
    assert struct.unpack("<2f", packed) == (0.5, -1.0)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "dimensions"


async def test_prompt_on_the_wire(api: Any) -> None:
    await api.chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            {"role": "assistant", "content": None},
        ],
        max_completion_tokens=9,
        temperature=0,
        top_p=0,
        top_k=-1,
        min_p=0.1,
        stop="end",
        seed=5,
        logit_bias={"12": -100},
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        ignore_eos=True,
        logprobs=True,
        service_tier="flex",
    )

    (turn,) = api.worker.turns
    prompt = turn.prompt
    assert isinstance(prompt, ChatPrompt)
    assert [(message.role, message.content, message.name) for message in prompt.messages] == [
        ("developer", "Be brief.", None),
        ("user", "ab", "Ann"),
        ("assistant", "", None),
    ]
    assert (prompt.max_tokens, prompt.temperature, prompt.top_k, prompt.min_p) == (9, 0, 0, 0.1)
    assert 0 < prompt.top_p < 0.001
    assert (prompt.stop, prompt.seed, prompt.logit_bias, prompt.ignore_eos) == (("end",), 5, {"12": -100}, True)
    assert (prompt.presence_penalty, prompt.frequency_penalty, prompt.repetition_penalty) == (1, -1, 1.1)
    assert prompt.logprobs == 0
    assert prompt.deadline is not None
    assert prompt.deadline - prompt.created == api.settings.queue.queue_timeout_s
    assert turn.lane.service_class is ServiceClass.BATCH
    assert turn.lane.tenant == "acme"


async def test_tool_call_id_reaches_the_worker(api: Any) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "tool", "content": "7", "tool_call_id": "call_1"}]
    await api.chat(messages=messages)

    prompt = api.worker.turns[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert [message.tool_call_id for message in prompt.messages] == [None, "call_1"]


async def test_null_means_default(api: Any) -> None:
    await api.client.post("/v1/completions", json={"prompt": [1, 2], "temperature": None, "n": None, "stop": None})

    prompt = api.worker.turns[0].prompt
    assert isinstance(prompt, CompletionPrompt)
    assert (prompt.prompt, prompt.temperature, prompt.n, prompt.max_tokens) == ((1, 2), 1.0, 1, 16)


async def test_parameters_that_ask_for_nothing_are_accepted(api: Any) -> None:
    message = {"role": "assistant", "content": "x", "tool_calls": [], "refusal": None, "annotations": []}
    response = await api.chat(
        messages=[message],
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        modalities=["text"],
        store=False,
        metadata=None,
        parallel_tool_calls=True,
        functions=None,
        stream=False,
        stream_options={"include_usage": False},
        logprobs=False,
        top_logprobs=0,
    )

    assert response.status_code == 200, response.text


async def test_stamp_owner_and_trace_travel(api: Any) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await api.client.post("/v1/completions", json={"prompt": "x"}, headers={"traceparent": trace})

    (turn,) = api.worker.turns
    replica = turn.prompt.id.partition("-")[0]
    assert turn.stamp.owner == f"a-{replica}" == turn.key.owner
    assert turn.stamp.expires_s > turn.prompt.deadline
    assert turn.headers["traceparent"] == trace


async def test_stub_says_so(api: Any) -> None:
    api.worker._backend = "stub"
    whole = await api.chat(model="pretend")
    streamed = await api.chat(model="pretend", stream=True)

    assert whole.headers["x-inferflux-backend"] == "stub"
    assert whole.json()["system_fingerprint"] == "stub:pretend"
    assert streamed.headers["x-inferflux-backend"] == "stub"
    assert events(streamed.text)[0]["system_fingerprint"] == "stub:pretend"


async def test_error_before_the_first_token_is_a_status(api: Any) -> None:
    api.worker.script = failing(Code.CONTEXT_LENGTH_EXCEEDED, "too long", param="messages")
    for stream in (False, True):
        response = await api.chat(stream=stream)

        assert response.status_code == 400
        assert response.json() == {
            "error": {
                "message": "too long",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }
        }
        assert response.headers["x-request-id"]


async def test_error_in_mid_stream_is_an_event(api: Any) -> None:
    async def broken(turn: Turn) -> None:
        await turn.say("Hel")
        await failing(Code.ENGINE_ERROR, "it broke")(turn)

    api.worker.script = broken
    response = await api.chat(stream=True)

    assert response.status_code == 200
    assert events(response.text)[-1]["error"]["code"] == "engine_error"


async def test_code_of_a_newer_worker_is_a_server_error(api: Any) -> None:
    async def newer(turn: Turn) -> None:
        await turn.fail(msgspec.convert({"code": "moon_phase", "message": "wrong moon"}, _failure()))

    api.worker.script = newer
    response = await api.chat()

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "moon_phase"


def _failure() -> Any:
    from inferflux.broker.wire.requests import Failure

    return Failure
