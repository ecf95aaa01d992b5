"""The official OpenAI SDK, unchanged, against a running server with the real model."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from harness.server import KEY, READ_KEY, Server

MODEL = "smollm2"

pytestmark = [pytest.mark.model, pytest.mark.integration]


@pytest.fixture
def client(model_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=model_server.url + "/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(model_server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    url = model_server.urls[1] + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ask("Say hello."), max_tokens=12, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 1 <= answer.usage.completion_tokens <= 12


def test_chat_stream_is_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    request = {"model": MODEL, "messages": ask("Count to five."), "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**request)
    pieces, reasons, usages = [], [], []
    for chunk in client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}):
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 3
    assert reasons == [whole.choices[0].finish_reason]
    assert [usage.completion_tokens for usage in usages] == [whole.usage.completion_tokens]


def test_completion_and_stop_string(client: openai.OpenAI) -> None:
    request = {"model": MODEL, "prompt": "1, 2, 3, 4,", "max_tokens": 30, "temperature": 0}
    free = client.completions.create(**request).choices[0]
    assert "7" in free.text
    stopped = client.completions.create(**request, stop=["7"]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index("7")]


def test_several_prompts_and_samples(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["One", "Two"], n=2, max_tokens=4, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.completion_tokens == sum(4 for _ in answer.choices)


def test_seed_reproduces_and_seeds_differ(client: openai.OpenAI) -> None:
    def sample(seed: int) -> str:
        answer = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=16, seed=seed)
        return answer.choices[0].text

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in (1, 2, 3)}) > 1


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ask("Hi"), max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(max(each.logprob for each in token.top_logprobs), abs=1e-4)


def test_completion_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="The sky is", max_tokens=3, temperature=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 3
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.text_offset[0] == 0


def test_logit_bias_forces_a_token(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="Hello", max_tokens=3, temperature=0, logit_bias={"100": 100}, logprobs=0
    )
    assert len(set(answer.choices[0].logprobs.tokens)) == 1


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["The cat sat on the mat.", "A cat is sitting on a mat.", "Quarterly revenue grew by nine percent."]
    vectors = [item.embedding for item in client.embeddings.create(model=MODEL, input=texts).data]
    plain = client.embeddings.create(model=MODEL, input=texts[0], encoding_format="float").data[0].embedding
    assert vectors[0] == pytest.approx(plain, abs=1e-6)
    assert sum(value * value for value in vectors[0]) == pytest.approx(1.0, abs=1e-3)
    close, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
    assert close > far


def test_embeddings_as_base64(client: openai.OpenAI) -> None:
    answer = client.embeddings.with_raw_response.create(model=MODEL, input="x", encoding_format="base64")
    data = answer.http_response.json()["data"][0]["embedding"]
    floats = struct.unpack(f"<{len(base64.b64decode(data)) // 4}f", base64.b64decode(data))
    assert len(floats) == 576


def test_errors_have_the_sdk_types(client: openai.OpenAI, model_server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="no-such-model", messages=ask("Hi"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as negative:
        client.chat.completions.create(model=MODEL, messages=ask("Hi"), max_tokens=-1)
    assert negative.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt="word " * 100_000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.PermissionDeniedError):
        client.with_options(api_key=READ_KEY).completions.create(model=MODEL, prompt="x")


def test_an_error_of_the_worker_is_a_status_also_when_streaming(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=MODEL, prompt="word " * 100_000, stream=True)
    assert error.value.code == "context_length_exceeded"


async def test_async_chat_and_stream(async_client: openai.AsyncOpenAI) -> None:
    request = {"model": MODEL, "messages": ask("Name a colour."), "max_tokens": 8, "temperature": 0}
    whole = await async_client.chat.completions.create(**request)
    pieces = []
    async for chunk in await async_client.chat.completions.create(**request, stream=True):
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content


async def test_async_errors_and_embeddings(async_client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await async_client.embeddings.create(model="nobody", input="x")
    answer = await async_client.embeddings.create(model=MODEL, input=["a", "b"])
    assert [item.index for item in answer.data] == [0, 1]
