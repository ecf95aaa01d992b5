"""completion, chat, models and status against a scripted server."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading

import pytest
from harness.http import Answer, Asked, sse

MODELS = [
    {"id": "first", "backend": "stub", "stub": True, "stub_reason": "the model file is missing", "num_workers": 1},
    {"id": "second", "backend": "llamacpp", "stub": False, "default": True, "num_workers": 2, "context_length": 2048},
]


def text_chunk(text: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": text}]}


def chat_chunk(text: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def answer(asked: Asked) -> Answer:
    """A server with two models that answers every prompt with what it was asked."""
    match asked.path:
        case "/v1/models":
            return Answer(body={"object": "list", "data": MODELS})
        case "/v1/completions" if asked.json.get("stream"):
            usage = {"choices": [], "usage": {}}
            return sse({"choices": [{"text": ""}]}, text_chunk("Hel"), text_chunk("lo"), usage, b"[DONE]")
        case "/v1/completions":
            return Answer(body=text_chunk("Hello"))
        case "/v1/chat/completions" if asked.json.get("stream"):
            said = asked.json["messages"][-1]["content"]
            if said == "refuse":
                return Answer(400, {"error": {"message": "not that", "code": "invalid_request"}})
            role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]}
            return sse(role, chat_chunk(f"<{said}"), chat_chunk(">"), b"[DONE]")
        case "/v1/chat/completions":
            return Answer(body={"choices": [{"message": {"role": "assistant", "content": "Hello"}}]})
        case _:
            return Answer(404, {"error": {"message": "no such path", "code": "not_found"}})


@pytest.fixture
def server(http_server, monkeypatch):
    server = http_server(answer)
    monkeypatch.setenv("INFERCTL_URL", server.url)
    return server


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_completion_is_printed(inferctl, server):
    assert inferctl("completion", "--prompt", "Hi", "--model", "m") == (0, "Hello\n", "")
    assert server.asked[-1].json == {"model": "m", "prompt": "Hi"}


def test_a_streamed_completion_is_printed_as_it_comes(inferctl, server):
    assert inferctl("completion", "--prompt", "Hi", "--model", "m", "--stream") == (0, "Hello\n", "")


def test_options_travel_and_the_rest_is_the_servers_choice(inferctl, server, monkeypatch):
    monkeypatch.setenv("INFERCTL_API_KEY", "sesame")
    options = ["--max-tokens", "5", "--temperature", "0", "--top-p", "0.5", "--seed", "7", "--stop", "a", "--stop", "b"]
    assert inferctl("completion", "--prompt", "Hi", *options).status == 0
    assert server.asked[-1].json == {
        "prompt": "Hi",
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 7,
        "stop": ["a", "b"],
    }
    assert server.asked[-1].headers["authorization"] == "Bearer sesame"


def test_json_is_the_servers_own(inferctl, server):
    whole = inferctl("completion", "--prompt", "Hi", "--model", "m", "--json")
    assert json.loads(whole.out) == text_chunk("Hello")
    streamed = inferctl("completion", "--prompt", "Hi", "--model", "m", "--json", "--stream")
    assert [json.loads(line)["choices"] for line in streamed.out.splitlines()][1:3] == [
        text_chunk("Hel")["choices"],
        text_chunk("lo")["choices"],
    ]


def test_a_prompt_may_be_piped_in(inferctl, server, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert inferctl("completion", "--model", "m").status == 0
    assert server.asked[-1].json["prompt"] == "from a pipe"


def test_no_prompt_is_an_error(inferctl, server, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for command in ("completion", "chat"):
        result = inferctl(command, "--model", "m")
        assert (result.status, result.out) == (1, "")
        assert "--prompt" in result.err


def test_no_server_is_one_line_that_says_how_to_start_one(inferctl):
    result = inferctl("models", "--url", "http://127.0.0.1:9")
    assert (result.status, result.out) == (1, "")
    assert result.err.count("\n") == 1
    assert "inferctl serve" in result.err


def test_an_error_in_mid_stream_keeps_what_came_before(inferctl, http_server):
    error = {"error": {"message": "the worker is gone", "code": "attempts_exhausted"}}
    server = http_server(lambda asked: sse(text_chunk("Hel"), error))
    result = inferctl("completion", "--prompt", "Hi", "--model", "m", "--stream", "--url", server.url)
    assert (result.status, result.out) == (1, "Hel")
    assert "the worker is gone [attempts_exhausted]" in result.err


def test_wrong_usage_exits_with_2(inferctl):
    assert inferctl("completion", "--max-tokens", "0").status == 2
    assert inferctl("fly").status == 2


def test_one_chat_message(inferctl, server):
    assert inferctl("chat", "--prompt", "Hi", "--system", "Rhyme.", "--model", "m") == (0, "<Hi>\n", "")
    assert server.asked[-1].json["messages"] == [
        {"role": "system", "content": "Rhyme."},
        {"role": "user", "content": "Hi"},
    ]
    assert inferctl("chat", "--prompt", "Hi", "--no-stream").out == "Hello\n"
    assert json.loads(inferctl("chat", "--prompt", "Hi", "--no-stream", "--json").out)["choices"]


def test_a_conversation_remembers_and_forgets(inferctl, server, monkeypatch):
    typed = "one\nrefuse\n/what\ntwo\n\n/reset\nthree\n/exit\nunread\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    result = inferctl("chat", "--interactive", "--system", "S", "--model", "m")
    assert result.status == 0
    assert result.out == "<one>\n\n<two>\n<three>\n"
    assert "not that" in result.err
    said = [[turn["content"] for turn in asked.json["messages"]] for asked in server.asked]
    assert said == [
        ["S", "one"],
        ["S", "one", "<one>", "refuse"],
        ["S", "one", "<one>", "two"],
        ["S", "three"],
    ]


def test_the_end_of_input_ends_a_conversation(inferctl, server, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    assert inferctl("chat", "-i", "--model", "m").status == 0


def test_interactive_goes_with_no_message(inferctl, server):
    assert "--interactive" in inferctl("chat", "-i", "--prompt", "x").err


def test_models_are_listed_and_a_stub_is_called_one(inferctl, server):
    first, second = inferctl("models").out.splitlines()[1:]
    assert first.startswith("first")
    assert "made-up text: the model file is missing" in first
    assert second.split() == ["second", "llamacpp", "yes", "2", "2048"]
    assert json.loads(inferctl("models", "--json").out)["data"] == MODELS


def test_a_terminal_is_not_steered_by_a_model(inferctl, http_server, monkeypatch):
    server = http_server(lambda asked: Answer(body=text_chunk("a\x1b]0;x\x07\nb")))
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    inferctl("completion", "--prompt", "Hi", "--model", "m", "--url", server.url)
    assert terminal.getvalue() == "a]0;x\nb\n"


@pytest.mark.parametrize("command", ["completion", "chat"])
def test_ctrl_c_in_a_stream_cancels_it_is_quiet_and_exits_with_130(http_server, command):
    finish = threading.Event()

    def endless(asked: Asked) -> Answer:
        if asked.method == "DELETE":
            return Answer(body={"id": "r-1", "state": "cancelled"})

        def pieces():
            yield b'data: {"choices":[{"text":"Hel","delta":{"content":"Hel"}}]}\n\n'
            # A signal that comes just before a read is noticed after it: so there is always something to read.
            while not finish.wait(0.05):
                yield b": ping\n\n"

        return Answer(body=pieces(), headers={"Content-Type": "text/event-stream", "x-request-id": "r-1"})

    server = http_server(endless)
    command = [sys.executable, "-m", "inferflux.cli.main", command, "--prompt", "Hi", "--model", "m", "--stream"]
    with subprocess.Popen(
        [*command, "--url", server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.read(3) == "Hel"
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=60)
        finally:
            child.kill()
            finish.set()
    assert (child.returncode, err) == (130, "")
    assert [(each.method, each.path) for each in server.asked[1:]] == [("DELETE", "/v1/streams/r-1")]


BEAT = {
    "worker": "w-1",
    "pid": 42,
    "draining": False,
    "rss_bytes": 500_000_000,
    "model_bytes": 98_000_000,
    "kv_bytes": 0,
    "models": [
        {
            "id": "smollm2",
            "backend": "llamacpp",
            "state": "failed",
            "reason": "no memory",
            "num_slots": 8,
            "num_free_slots": 3,
            "num_running": 5,
            "num_waiting": 0,
            "num_pages": 100,
            "num_pages_used": 7,
            "tokens_per_s": 12.34,
        }
    ],
}


def fleet(asked: Asked) -> Answer:
    match asked.path:
        case "/readyz":
            return Answer(503, {"status": "unavailable"})
        case "/v1/admin/status":
            return Answer(body={"replica": "r1", "pid": 41, "rss_bytes": 90_000_000})
        case "/v1/admin/workers":
            return Answer(body={"data": [BEAT]})
        case _:
            lane = {"model": "smollm2", "service_class": "batch", "tenant": "acme"}
            lane |= {"depth": 12, "num_waiting": 10, "num_running": 2, "oldest_age_s": 3.04}
            return Answer(body={"data": [lane]})


def test_status_shows_processes_models_and_queues(inferctl, http_server):
    server = http_server(fleet)
    shown = [line.split() for line in inferctl("status", "--url", server.url).out.splitlines()]
    assert shown[0] == [f"{server.url}:", "not", "ready"]
    assert ["api", "r1", "41", "90", "MB"] in shown
    assert ["worker", "w-1", "42", "500", "MB", "98", "MB", "-", "serving"] in shown
    assert ["smollm2", "llamacpp", "failed:", "no", "memory", "3/8", "5", "0", "7/100", "12.3"] in shown
    assert ["smollm2", "batch", "acme", "10", "2", "3.0", "s"] in shown
    whole = json.loads(inferctl("status", "--url", server.url, "--json").out)
    assert (whole["ready"], whole["workers"]) == (False, [BEAT])


def test_status_needs_a_key_that_may(inferctl, http_server):
    error = {"error": {"message": "this key lacks the scope admin", "code": "insufficient_scope"}}
    result = inferctl("status", "--url", http_server(lambda asked: Answer(403, error)).url)
    assert result.status == 1
    assert "lacks the scope admin" in result.err


def test_ctrl_c_in_a_conversation_ends_the_answer_only(inferctl, server, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if text == "<one":
            raise KeyboardInterrupt

    monkeypatch.setattr("inferflux.cli.terminal.write", write)
    assert inferctl("chat", "-i", "--model", "m").status == 0
    assert "".join(written) == "<one\n<two>\n"
    assert [turn["content"] for turn in server.asked[-1].json["messages"]] == ["one", "<one", "two"]
