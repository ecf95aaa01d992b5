"""fleet, queue, top and admin against a scripted server."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from typing import Any
from urllib.parse import unquote

import pytest
from harness.http import Answer, Asked

WORKER = {
    "worker": "w-1",
    "host": "[red]node",
    "pid": 42,
    "draining": False,
    "age_s": 0.4,
    "models": [
        {
            "id": "smollm2",
            "backend": "llamacpp",
            "hardware": "cpu",
            "state": "ready",
            "reason": None,
            "num_slots": 8,
            "num_free_slots": 3,
            "num_running": 5,
            "num_waiting": 1,
            "num_pages": 100,
            "num_pages_used": 7,
            "tokens_per_s": 12.34,
        }
    ],
}
LANES = [
    {
        "model": "smollm2",
        "service_class": "default",
        "tenant": tenant,
        "depth": waiting + 2,
        "num_waiting": waiting,
        "num_running": 2,
        "oldest_age_s": age_s,
    }
    for tenant, waiting, age_s in (("acme", 10, 3.0), ("globex", 90, 600.0), ("quiet\x1b[2J", 0, None))
]
LETTER = {
    "id": "t-acme.job=207",
    "request": "job 7",
    "owner": "t-acme",
    "model": "smollm2",
    "service_class": "batch",
    "tenant": "acme",
    "code": "attempts_exhausted",
    "message": "given up",
    "at": 1_700_000_000.0,
    "num_bytes": 80,
    "attempts": [
        {"worker": "w-1", "at": 1.0, "state": "running"},
        {"worker": "w-2", "at": 2.0, "state": "released"},
        {"worker": "w-3", "at": 3.0, "state": "running"},
    ],
}
STATUS = {"replica": "r1", "pid": 41, "rss_bytes": 90_000_000, "num_streams": 4, "tape_fill": 0.25}
FAIRNESS = {
    "weights": {"acme": 4.0, "research": 2.0},
    "min_share": {"default": 0.2, "batch": 0.1},
    "changed": {"weights": {"acme": 4.0}, "min_share": {"batch": 0.1}},
}
MISSING = Answer(404, {"error": {"message": "there is nothing of this name", "code": "not_found"}})


class Operated:
    """A scripted server with one worker, three lanes and the given dead letters."""

    def __init__(self, *letters: str) -> None:
        self.letters = list(letters)
        self.calls: list[tuple[str, str, Any]] = []

    def __call__(self, asked: Asked) -> Answer:
        path = unquote(asked.path)
        if asked.method != "GET":
            self.calls.append((asked.method, path, asked.json if asked.body else None))
        match asked.method, path.removeprefix("/v1/admin/").split("/"):
            case "GET", ["", "readyz"]:
                return Answer(body={"status": "ok"})
            case "GET", ["status"]:
                return Answer(body=STATUS)
            case "GET", ["workers"]:
                return Answer(body={"data": [WORKER]})
            case "GET", ["queue"]:
                return Answer(body={"data": LANES})
            case "GET", ["queue", "dead"]:
                return Answer(body={"data": [LETTER | {"id": each} for each in self.letters]})
            case _, ["queue", "dead", letter, *_] if letter not in self.letters:
                return MISSING
            case "GET", ["queue", "dead", letter]:
                return Answer(body=LETTER | {"id": letter, "prompt": {"prompt": "the words"}, "headers": {}})
            case "POST", ["queue", "dead", letter, "retry"]:
                if letter.endswith("bad"):
                    return Answer(500, {"error": {"message": "no luck", "code": "engine_error"}})
                choices = [{"index": 0, "text": "an answer", "finish_reason": "stop"}]
                return Answer(
                    body={"id": letter, "request": "new-1", "choices": choices, "usage": {"completion_tokens": 2}}
                )
            case "DELETE", ["queue", "dead", letter]:
                return Answer(body={"id": letter, "dropped": True})
            case "DELETE", ["requests", request]:
                if request == "unknown":
                    return MISSING
                return Answer(body={"id": request, "state": "ended" if request == "old" else "cancelled"})
            case (("GET" | "PUT"), ["fairness"]):
                return Answer(body=FAIRNESS)
        raise AssertionError(asked)


@pytest.fixture
def operated(http_server, monkeypatch):
    """Start a scripted server that the commands find."""

    def start(*letters: str) -> Operated:
        server = Operated(*letters)
        monkeypatch.setenv("INFERCTL_URL", http_server(server).url)
        return server

    return start


def words(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


def test_fleet_shows_a_row_for_each_model(inferctl, operated):
    operated()
    row = "w-1 [red]node smollm2 llamacpp (cpu) ready 3/8 5 1 7/100 12.3 0.4 s ago"
    assert row.split() in words(inferctl("fleet").out)
    assert json.loads(inferctl("fleet", "--json").out) == [WORKER]


def test_queue_shows_what_waits_and_runs_and_how_old(inferctl, operated):
    operated()
    result = inferctl("queue")
    shown = words(result.out)
    assert ["smollm2", "default", "acme", "10", "2", "3.0", "s"] in shown
    assert ["smollm2", "default", "globex", "90", "2", "10", "min"] in shown
    assert ["smollm2", "default", "quiet[2J", "0", "2", "-"] in shown
    assert "\x1b" not in result.out
    assert json.loads(inferctl("queue", "--json").out) == LANES


def test_requests_are_cancelled_by_id(inferctl, operated):
    server = operated()
    result = inferctl("queue", "cancel", "t-acme.job=207", "old")
    assert (result.status, result.out) == (0, "")
    assert result.err.splitlines() == ["t-acme.job=207: cancelled", "old: had ended already"]
    assert server.calls == [
        ("DELETE", "/v1/admin/requests/t-acme.job=207", None),
        ("DELETE", "/v1/admin/requests/old", None),
    ]
    assert json.loads(inferctl("queue", "cancel", "x", "--json").out) == {"id": "x", "state": "cancelled"}
    assert inferctl("queue", "cancel", "unknown").status == 1
    assert inferctl("queue", "cancel").status == 2


def test_dead_letters_are_listed_without_their_prompts(inferctl, operated):
    operated("t-acme.job=207")
    result = inferctl("queue", "dead", "list")
    row = "t-acme.job=207 smollm2 batch acme 2023-11-14 22:13:20Z w-1, w-3 attempts_exhausted"
    assert row.split() in words(result.out)
    assert "the words" not in result.out
    assert json.loads(inferctl("queue", "dead", "list", "--json").out)[0]["id"] == "t-acme.job=207"


def test_one_is_shown_with_its_prompt(inferctl, operated):
    operated("t-acme.job=207")
    assert json.loads(inferctl("queue", "dead", "show", "t-acme.job=207").out)["prompt"] == {"prompt": "the words"}
    missing = inferctl("queue", "dead", "show", "t-acme.other")
    assert (missing.status, missing.out) == (1, "")
    assert "nothing of this name" in missing.err


def test_retry_prints_the_answer(inferctl, operated):
    server = operated("t-acme.a")
    result = inferctl("queue", "dead", "retry", "t-acme.a")
    assert (result.status, result.out) == (0, "an answer\n")
    assert "answered as new-1, 2 tokens" in result.err
    assert server.calls == [("POST", "/v1/admin/queue/dead/t-acme.a/retry", {})]
    assert json.loads(inferctl("queue", "dead", "retry", "t-acme.a", "--json").out)["request"] == "new-1"


def test_retrying_all_tries_all_and_fails_when_one_did(inferctl, operated):
    server = operated("t-acme.a", "t-acme.bad", "t-acme.c")
    result = inferctl("queue", "dead", "retry", "--all")
    assert (result.status, result.out) == (1, "an answer\nan answer\n")
    assert "t-acme.bad: no luck" in result.err
    assert "1 of 3" in result.err
    assert len(server.calls) == 3


def test_drop_takes_names_or_all(inferctl, operated):
    server = operated("t-acme.a", "t-acme.b")
    assert inferctl("queue", "dead", "drop", "t-acme.b").err == "t-acme.b: dropped\n"
    assert inferctl("queue", "dead", "drop", "--all").status == 0
    paths = [path.rpartition("/")[2] for _, path, _ in server.calls]
    assert paths == ["t-acme.b", "t-acme.a", "t-acme.b"]
    assert inferctl("queue", "dead", "drop").status == 2
    assert inferctl("queue", "dead", "drop", "t-acme.a", "--all").status == 2


def test_nothing_dead_is_no_failure(inferctl, operated):
    operated()
    for command in (("list",), ("retry", "--all"), ("drop", "--all")):
        result = inferctl("queue", "dead", *command)
        assert (result.status, result.err) == (0, "no request was given up\n")


def test_fairness_shows_where_values_come_from(inferctl, operated):
    server = operated()
    shown = words(inferctl("admin", "fairness", "--get").out)
    assert ["weight", "acme", "4", "changed", "while", "running"] in shown
    assert ["weight", "research", "2", "settings"] in shown
    assert ["least", "share", "batch", "0.1", "changed", "while", "running"] in shown
    assert json.loads(inferctl("admin", "fairness", "--json").out) == FAIRNESS
    assert server.calls == []


def test_fairness_changes_what_is_named(inferctl, operated):
    server = operated()
    arguments = ["--set-weight", "acme=4", "--set-weight", "a=b=0.5", "--set-weight", "x=default"]
    assert inferctl("admin", "fairness", *arguments, "--set-share", "batch=0.1").status == 0
    weights = {"acme": 4.0, "a=b": 0.5, "x": None}
    assert server.calls == [("PUT", "/v1/admin/fairness", {"weights": weights, "min_share": {"batch": 0.1}})]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set-weight", "acme"],
        ["--set-weight", "acme=much"],
        ["--set-share", "=1"],
        ["--get", "--set-weight", "acme=1"],
    ],
)
def test_unclear_fairness_is_refused(inferctl, operated, arguments):
    server = operated()
    assert inferctl("admin", "fairness", *arguments).status == 2
    assert server.calls == []


def test_top_prints_one_picture(inferctl, operated):
    operated()
    result = inferctl("top", "--once")
    assert "ready, replica r1, 4 streams, tape 25% full" in result.out
    assert "1 workers, 3 slots free, 12.3 tokens/s, 100 prompts wait, 6 run" in result.out
    tenants = [line[2] for line in words(result.out) if line[:2] == ["smollm2", "default"]]
    assert tenants == ["globex", "acme", "quiet[2J"], "the fullest lane first"
    seen = json.loads(inferctl("top", "--once", "--json").out)
    assert (seen["ready"], seen["workers"], seen["queue"], seen["api"]) == (True, [WORKER], LANES, STATUS)


def test_top_streams_json_until_it_is_stopped(operated):
    operated()
    command = [sys.executable, "-m", "inferflux.cli.main", "top", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            seen = [json.loads(child.stdout.readline()) for _ in range(2)]
            child.send_signal(2)
            _, err = child.communicate(timeout=60)
        finally:
            child.kill()
    assert seen[0]["at"] < seen[1]["at"]
    assert (child.returncode, err) == (0, "")


def test_top_is_live_and_q_leaves(operated):
    operated()
    terminal, inner = pty.openpty()
    command = [sys.executable, "-m", "inferflux.cli.main", "top"]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    with subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environ) as child:
        os.close(inner)
        try:
            shown = _read_until(terminal, b"globex")
            os.write(terminal, b"q")
            assert child.wait(timeout=60) == 0
        finally:
            child.kill()
            os.close(terminal)
    assert b"12.3 tokens/s" in shown


def _read_until(terminal: int, mark: bytes) -> bytes:
    shown = b""
    deadline = time.monotonic() + 60
    while mark not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, shown
        shown += os.read(terminal, 65536)
    return shown
