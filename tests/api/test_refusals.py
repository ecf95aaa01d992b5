"""Every way to be refused: one table of (what is sent, status, code, param)."""

from __future__ import annotations

import gzip
from typing import Any, NamedTuple

import msgspec
import pytest
from harness.scripted_worker import failing

from inferflux.broker.errors import BrokerError, BrokerUnavailable, ClaimLost, Code, RevisionConflict
from inferflux.config.settings import AuthSettings, Settings

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
HI = [{"role": "user", "content": "Hi"}]
IMAGE = [{"role": "user", "content": [{"image_url": {"url": "data:"}, "type": "image_url"}]}]


class Bad(NamedTuple):
    """One request; `key` None sends no Authorization header at all."""

    name: str
    status: int
    code: str
    param: str | None = None
    path: str = CHAT
    body: Any = None
    raw: bytes | None = None
    key: str | None = "Bearer key-all"
    content_type: str = "application/json"
    method: str = "POST"
    says: str = ""


def bad(
    name: str, param: str, code: str = "invalid_request", *, path: str = CHAT, says: str = "", **fields: Any
) -> Bad:
    """A request that is fine but for some fields."""
    base: dict[str, Any] = {CHAT: {"messages": HI}, COMPLETIONS: {"prompt": "x"}, EMBEDDINGS: {"input": "x"}}[path]
    return Bad(name, 400, code, param, path, base | fields, says=says)


UNSUPPORTED = "unsupported_parameter"

TABLE = [
    Bad("malformed JSON", 400, "invalid_json", raw=b'{"messages": ['),
    Bad("no JSON at all", 400, "invalid_json", raw=b"hello"),
    Bad("empty body", 400, "invalid_json", raw=b""),
    Bad("invalid UTF-8", 400, "invalid_json", raw=b'{"messages":[{"role":"user","content":"\xff\xfe"}]}', says="UTF-8"),
    Bad("invalid UTF-8 in a key", 400, "invalid_json", raw=b'{"mess\xffages":[]}', says="UTF-8"),
    Bad("lone surrogate", 400, "invalid_json", raw=b'{"prompt":"\\ud800"}', path=COMPLETIONS),
    Bad("nested too deeply", 400, "invalid_json", raw=b'{"tools":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    Bad("an array", 400, "invalid_request", body=[1]),
    Bad("10 MB of prompt", 413, "request_too_large", path=COMPLETIONS, body={"prompt": "x" * 10_000_000}),
    Bad("form data", 415, "unsupported_media_type", raw=b"a=b", content_type="application/x-www-form-urlencoded"),
    Bad("unknown path", 404, "not_found", path="/v1/nothing", body={}),
    Bad("unknown path outside /v1", 404, "not_found", path="/nothing", body={}),
    Bad("wrong method", 405, "method_not_allowed", method="GET"),
    Bad("no key", 401, "invalid_api_key", body={"messages": HI}, key=None),
    Bad("wrong key", 401, "invalid_api_key", body={"messages": HI}, key="Bearer nobody"),
    Bad("empty key", 401, "invalid_api_key", body={"messages": HI}, key="Bearer "),
    Bad("another scheme", 401, "invalid_api_key", body={"messages": HI}, key="Basic a2V5LWFsbDo="),
    Bad("bare key", 401, "invalid_api_key", body={"messages": HI}, key="key-all"),
    Bad("no scope to generate", 403, "insufficient_scope", body={"messages": HI}, key="Bearer key-read"),
    Bad("no scope to read", 403, "insufficient_scope", path="/v1/models", method="GET", key="Bearer key-generate"),
    Bad("no scope for admin", 403, "insufficient_scope", path="/v1/admin/queue", method="GET", key="Bearer key-read"),
    Bad("key refused before its body", 401, "invalid_api_key", raw=b"{", key="Bearer nobody"),
    Bad("another key's model", 403, "model_not_allowed", "model", body={"messages": HI}, key="Bearer key-other-model"),
    Bad("unknown model", 404, "model_not_found", "model", body={"messages": HI, "model": "gpt"}, says="org/small"),
    Bad("unknown model by id", 404, "model_not_found", "model", path="/v1/models/gpt", method="GET"),
    Bad(
        "class not allowed",
        403,
        "class_not_allowed",
        "service_tier",
        body={"messages": HI, "service_tier": "priority"},
        key="Bearer key-bounded",
        says="flex",
    ),
    Bad("no messages", 400, "invalid_request", "messages", body={}),
    Bad("no prompt", 400, "invalid_request", "prompt", path=COMPLETIONS, body={}),
    Bad("no input", 400, "invalid_request", "input", path=EMBEDDINGS, body={}),
    bad("empty messages", "messages", messages=[]),
    bad("messages of the wrong type", "messages", messages="Hi"),
    bad("role of the wrong type", "messages[0].role", messages=[{"role": 1, "content": "x"}]),
    bad("unknown role", "messages[1].role", messages=[*HI, {"role": "robot", "content": "x"}]),
    bad("no role", "messages[0].role", messages=[{"content": "x"}]),
    bad("no content", "messages[0].content", messages=[{"role": "user"}]),
    bad("content of the wrong type", "messages[0].content", messages=[{"role": "user", "content": 5}]),
    bad("image", "messages[0].content[0].type", UNSUPPORTED, messages=IMAGE),
    bad(
        "audio",
        "messages[0].content[0].type",
        UNSUPPORTED,
        messages=[{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
    ),
    bad(
        "tool calls in a message",
        "messages[0].tool_calls",
        UNSUPPORTED,
        messages=[{"role": "assistant", "tool_calls": [{"id": "x"}]}],
    ),
    bad("unknown field of a message", "messages[0].colour", UNSUPPORTED, messages=[HI[0] | {"colour": "red"}]),
    bad("negative max_tokens", "max_tokens", max_tokens=-1),
    bad("zero max_tokens", "max_tokens", max_tokens=0),
    bad("max_tokens as text", "max_tokens", max_tokens="5"),
    bad("fractional max_tokens", "max_tokens", max_tokens=1.5),
    bad("negative max_completion_tokens", "max_completion_tokens", max_completion_tokens=-5),
    bad("both bounds", "max_tokens", max_tokens=5, max_completion_tokens=5),
    bad("hot temperature", "temperature", temperature=2.1),
    bad("cold temperature", "temperature", temperature=-0.1),
    bad("temperature as text", "temperature", temperature="warm"),
    bad("top_p", "top_p", top_p=1.5),
    bad("top_k", "top_k", top_k=-2),
    bad("top_k of more than 31 bits", "top_k", top_k=2**31),
    bad("min_p", "min_p", min_p=2),
    bad("presence_penalty", "presence_penalty", presence_penalty=3),
    bad("frequency_penalty", "frequency_penalty", frequency_penalty=-3),
    bad("repetition_penalty", "repetition_penalty", repetition_penalty=0),
    bad("no choices", "n", n=0),
    bad("too many choices", "n", n=129),
    bad("too many choices over prompts", "n", path=COMPLETIONS, prompt=["a"] * 20, n=10),
    bad("five stops", "stop", stop=["a", "b", "c", "d", "e"]),
    bad("empty stop", "stop", stop=""),
    bad("stop of the wrong type", "stop[0]", stop=[1]),
    bad("seed", "seed", seed="x"),
    bad("bias out of range", "logit_bias", logit_bias={"5": 101}),
    bad("bias for a word", "logit_bias", logit_bias={"hello": 1}),
    bad("logprobs as a number in chat", "logprobs", logprobs=3),
    bad("logprobs beyond five", "logprobs", path=COMPLETIONS, logprobs=6),
    bad("top_logprobs beyond twenty", "top_logprobs", logprobs=True, top_logprobs=21),
    bad("top_logprobs alone", "top_logprobs", top_logprobs=2),
    bad("stream as text", "stream", stream="yes"),
    bad("stream_options without stream", "stream_options", stream_options={"include_usage": True}),
    bad("unknown stream option", "stream_options.speed", UNSUPPORTED, stream=True, stream_options={"speed": 1}),
    bad("service_tier", "service_tier", service_tier="gold"),
    bad("model of the wrong type", "model", model=7),
    bad("user of the wrong type", "user", user=7),
    bad("tools", "tools", UNSUPPORTED, tools=[{"type": "function"}]),
    bad("tool_choice", "tool_choice", UNSUPPORTED, tool_choice="required"),
    bad("functions", "functions", UNSUPPORTED, functions=[{"name": "f"}]),
    bad("response_format", "response_format", UNSUPPORTED, response_format={"type": "json_object"}),
    bad("audio output", "audio", UNSUPPORTED, audio={"voice": "x"}),
    bad("modalities", "modalities", UNSUPPORTED, modalities=["text", "audio"]),
    bad("store", "store", UNSUPPORTED, store=True),
    bad("metadata", "metadata", UNSUPPORTED, metadata={"a": "b"}),
    bad("prediction", "prediction", UNSUPPORTED, prediction={"type": "content"}),
    bad("reasoning_effort", "reasoning_effort", UNSUPPORTED, reasoning_effort="high"),
    bad("web search", "web_search_options", UNSUPPORTED, web_search_options={}),
    bad("misspelt", "temprature", UNSUPPORTED, temprature=1, says="'temperature'"),
    bad("misspelt null", "temprature", UNSUPPORTED, temprature=None),
    bad("suffix", "suffix", UNSUPPORTED, path=COMPLETIONS, suffix="end"),
    bad("best_of", "best_of", UNSUPPORTED, path=COMPLETIONS, best_of=3),
    bad("echo with logprobs", "logprobs", UNSUPPORTED, path=COMPLETIONS, echo=True, logprobs=1),
    bad("chat's field in completions", "messages", UNSUPPORTED, path=COMPLETIONS, messages=HI),
    bad("empty prompt list", "prompt", path=COMPLETIONS, prompt=[]),
    bad("mixed prompts", "prompt", path=COMPLETIONS, prompt=["a", 1]),
    bad("negative token", "prompt[0]", path=COMPLETIONS, prompt=[-1]),
    bad("prompt of the wrong type", "prompt", path=COMPLETIONS, prompt={"text": "x"}),
    bad("encoding_format", "encoding_format", path=EMBEDDINGS, encoding_format="hex"),
    bad("zero dimensions", "dimensions", path=EMBEDDINGS, dimensions=0),
    bad("too many inputs", "input", path=EMBEDDINGS, input=["x"] * 2049),
]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
async def test_refusal(api: Any, case: Bad) -> None:
    headers = {"content-type": case.content_type}
    api.client.headers.pop("authorization")
    if case.key is not None:
        headers["authorization"] = case.key
    content = msgspec.json.encode(case.body) if case.raw is None else case.raw

    response = await api.client.request(case.method, case.path, content=content, headers=headers)

    assert response.status_code == case.status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (case.code, case.param), error
    assert case.says in error["message"]
    assert error["message"]
    assert "Traceback" not in response.text
    assert api.worker.turns == []
    if case.status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
    if case.status == 405:
        assert "POST" in response.headers["allow"]


async def test_context_overflow(api: Any) -> None:
    api.worker.script = failing(Code.CONTEXT_LENGTH_EXCEEDED, "too long", param="messages")
    response = await api.chat()

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_server_without_keys_says_how_to_get_one(apis: Any) -> None:
    api = await apis.start(Settings(auth=AuthSettings()))
    response = await api.chat()

    assert response.status_code == 401
    assert "auth.api_keys" in response.json()["error"]["message"]


async def test_a_compressed_body_is_refused_as_one(api: Any) -> None:
    content = gzip.compress(msgspec.json.encode({"messages": HI}))
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = await api.client.post(CHAT, content=content, headers=headers)

    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "gzip" in response.json()["error"]["message"]


async def test_crash_is_a_plain_500(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(api.broker, "publish_prompt", crash)
    response = await api.chat()

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RevisionConflict("registry: models has changed"), 409, "conflict"),
        (ClaimLost("another claim"), 409, "conflict"),
        (BrokerUnavailable("no answer"), 503, "broker_unavailable"),
        (BrokerError("registry: models cannot be written: maximum bytes exceeded"), 503, "broker_unavailable"),
    ],
)
async def test_what_the_broker_does_not_do_is_no_crash(
    api: Any, monkeypatch: pytest.MonkeyPatch, error: BrokerError, status: int, code: str
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(api.parts.model_store, "read", refuse)
    response = await api.client.get("/v1/admin/models")

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert ("retry-after" in response.headers) is (status == 503)


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("DELETE", "/v1/admin/models/x?dry_run=maybe", None, "dry_run"),
        ("POST", "/v1/admin/models", {"id": "x\n", "backend": "stub"}, "id"),
        ("PUT", "/v1/admin/tenants/a%0Ab", {}, "tenant"),
        ("POST", COMPLETIONS, {"prompt": "x", "logit_bias": {"5\n": 1}}, "logit_bias"),
    ],
)
async def test_what_nobody_can_have_meant_is_named(api: Any, method: str, path: str, body: Any, param: str) -> None:
    content = None if body is None else msgspec.json.encode(body)
    response = await api.client.request(method, path, content=content, headers={"content-type": "application/json"})

    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
