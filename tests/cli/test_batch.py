"""batch submit, list, show, cancel, results, validate and run against a scripted server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness.batches import jsonl, line
from harness.http import Answer, Asked

from inferflux.cli.progress import Rate

OUTPUT = [
    {
        "id": "r1",
        "custom_id": "1",
        "response": {"status_code": 200, "request_id": "x", "body": {"choices": [{"message": {"content": "one"}}]}},
        "error": None,
    },
    {
        "id": "r0",
        "custom_id": "0",
        "response": {"status_code": 200, "request_id": "x", "body": {"choices": [{"message": {"content": "zero\n"}}]}},
        "error": None,
    },
]
ERRORS = [
    {
        "id": "r2",
        "custom_id": "2",
        "response": {"status_code": 400, "request_id": "x", "body": {"error": {"message": "too long"}}},
        "error": None,
    },
    {"id": "r3", "custom_id": "3", "response": None, "error": {"code": "batch_expired", "message": "too late"}},
]


def batch(status: str = "completed", **fields: Any) -> dict[str, Any]:
    return {
        "id": "batch_1",
        "object": "batch",
        "status": status,
        "endpoint": "/v1/chat/completions",
        "model": "smollm2",
        "input_file_id": "file-in",
        "output_file_id": "file-out",
        "error_file_id": "file-err",
        "created_at": 1_800_000_000,
        "request_counts": {"total": 4, "completed": 2, "failed": 2},
        "usage": {"input_tokens": 12, "output_tokens": 20},
        "errors": None,
    } | fields


class Server:
    """Takes files and batches, and is done at the second look."""

    def __init__(self, ended: dict[str, Any] | None = None) -> None:
        self.uploaded = b""
        self.created: dict[str, Any] = {}
        self.num_looks = 0
        self._ended = ended or batch()

    def answer(self, asked: Asked) -> Answer:
        match asked.method, asked.path.partition("?")[0]:
            case "POST", "/v1/files":
                self.uploaded = asked.body
                return Answer(body={"id": "file-in"})
            case "POST", "/v1/batches":
                self.created = asked.json
                return Answer(body=batch("validating"))
            case "GET", "/v1/batches":
                return Answer(body={"data": [batch("in_progress"), batch(id="batch_0")]})
            case "POST", "/v1/batches/batch_1/cancel":
                return Answer(body=batch("cancelling"))
            case "GET", "/v1/batches/batch_1":
                self.num_looks += 1
                return Answer(body=self._ended if self.num_looks > 1 else batch("in_progress"))
            case "GET", "/v1/files/file-out/content":
                return Answer(body=jsonl(OUTPUT))
            case "GET", "/v1/files/file-err/content":
                return Answer(body=jsonl(ERRORS))
        return Answer(404, {"error": {"message": "no such batch", "code": "not_found"}})


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferflux.cli.jobs.POLL_S", 0.01)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(line(number) for number in range(4)))
    return path


def test_submit_prints_the_id(inferctl: Any, http_server: Any, server: Server, file: Path) -> None:
    url = http_server(server.answer).url
    result = inferctl("batch", "submit", str(file), "--window", "30m", "--metadata", "job=x", "--url", url)
    assert (result.status, result.out) == (0, "batch_1\n")
    assert file.read_bytes() in server.uploaded
    assert server.created == {
        "input_file_id": "file-in",
        "endpoint": "/v1/chat/completions",
        "completion_window": "30m",
        "metadata": {"job": "x"},
    }


def test_submit_waits_and_shows_how_far_it_is(inferctl: Any, http_server: Any, server: Server, file: Path) -> None:
    result = inferctl("batch", "submit", str(file), "--wait", "--json", "--url", http_server(server.answer).url)
    assert result.status == 0
    assert json.loads(result.out)["status"] == "completed"
    assert "4/4 lines" in result.err


def test_submit_with_another_model(inferctl: Any, http_server: Any, server: Server, file: Path) -> None:
    assert inferctl("batch", "submit", str(file), "--model", "m", "--url", http_server(server.answer).url).status == 0
    assert server.uploaded.count(b'"model": "m"') == 4


def test_a_batch_that_failed_fails_the_command(inferctl: Any, http_server: Any, file: Path) -> None:
    problem = {"code": "invalid_json_line", "message": "This line is not valid JSON.", "param": None, "line": 3}
    server = Server(batch("failed", errors={"data": [problem], "total": 1}))
    result = inferctl("batch", "submit", str(file), "--wait", "--url", http_server(server.answer).url)
    assert result.status == 1
    assert "line 3: This line is not valid JSON." in result.err


def test_list_show_and_cancel(inferctl: Any, http_server: Any, server: Server) -> None:
    url = http_server(server.answer).url
    listed = inferctl("batch", "list", "--url", url)
    assert "batch_0" in listed.out
    assert "in_progress" in listed.out
    assert len(json.loads(inferctl("batch", "list", "--json", "--url", url).out)) == 2
    shown = inferctl("batch", "show", "batch_1", "--url", url)
    assert "file-out" in shown.out
    assert "4, 2 completed, 2 failed" in shown.out
    cancelled = inferctl("batch", "cancel", "batch_1", "--url", url)
    assert (cancelled.status, cancelled.err) == (0, "batch_1: cancelling\n")
    missing = inferctl("batch", "show", "batch_9", "--url", url)
    assert missing.status == 1
    assert "no such batch" in missing.err


def test_results(inferctl: Any, http_server: Any, server: Server, tmp_path: Path) -> None:
    url = http_server(server.answer).url
    early = inferctl("batch", "results", "batch_1", "--url", url)
    assert early.status == 1
    assert "in_progress" in early.err
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    result = inferctl("batch", "results", "batch_1", "-o", str(output), "--errors", str(errors), "--url", url)
    assert result.status == 0
    assert output.read_bytes() == jsonl(OUTPUT)
    assert errors.read_bytes() == jsonl(ERRORS)
    piped = inferctl("batch", "results", "batch_1", "--url", url)
    assert piped.out.encode() == jsonl(OUTPUT)
    assert "2 lines failed" in piped.err


def test_validate_needs_no_server(inferctl: Any, file: Path) -> None:
    result = inferctl("batch", "validate", str(file))
    assert (result.status, result.err) == (0, f"{file}: 4 requests for /v1/chat/completions\n")
    file.write_bytes(jsonl([line(1), line(1), line(2, temperature=9)]))
    result = inferctl("batch", "validate", str(file))
    assert result.status == 1
    assert "line 2: " in result.err
    assert "line 3: " in result.err
    told = json.loads(inferctl("batch", "validate", str(file), "--json").out)
    assert [(each["line"], each["code"]) for each in told["problems"]] == [
        (2, "duplicate_custom_id"),
        (3, "invalid_request"),
    ]
    assert inferctl("batch", "validate", str(file.with_name("none"))).status == 1


@pytest.mark.parametrize(
    ("first", "code"), [(b"not JSON\n", "invalid_json_line"), (jsonl([line(1, url="/v1/images")]), "invalid_url")]
)
def test_validate_tells_what_is_wrong_with_the_first_line(inferctl: Any, file: Path, first: bytes, code: str) -> None:
    file.write_bytes(first + jsonl([line(2)]))
    told = json.loads(inferctl("batch", "validate", str(file), "--json").out)
    assert [(each["line"], each["code"]) for each in told["problems"]] == [(1, code)]
    submitted = inferctl("batch", "submit", str(file), "--url", "http://127.0.0.1:1")
    assert submitted.status == 1


def test_run_answers_prompts_in_their_order(inferctl: Any, http_server: Any, server: Server, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("null\neins\n\nzwei\ndrei\n")
    url = http_server(server.answer).url
    result = inferctl("batch", "run", str(prompts), "-o", str(output), "--max-tokens", "9", "--url", url)
    assert result.status == 0, result.err
    assert [json.loads(each) for each in output.read_text().splitlines()] == [
        {"prompt": "null", "text": "zero\n", "error": None},
        {"prompt": "eins", "text": "one", "error": None},
        {"prompt": "zwei", "text": None, "error": "too long"},
        {"prompt": "drei", "text": None, "error": "too late"},
    ]
    assert b'"max_tokens": 9' in server.uploaded


def test_run_takes_lines_as_they_are(inferctl: Any, http_server: Any, server: Server, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_bytes("a\u2028b\x0cc\r\n  d\r\n\ne\nf".encode())
    url = http_server(server.answer).url
    assert inferctl("batch", "run", str(prompts), "-o", str(output), "--url", url).status == 0
    assert server.uploaded.count(b'"custom_id"') == 4
    assert '"a\u2028b\\fc"'.encode() in server.uploaded
    assert b'"  d"' in server.uploaded


def test_run_looks_first_whether_it_can_write(inferctl: Any, http_server: Any, server: Server, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n")
    url = http_server(server.answer).url
    result = inferctl("batch", "run", str(prompts), "-o", str(tmp_path / "none" / "out.jsonl"), "--url", url)
    assert result.status == 1
    assert "cannot be written" in result.err
    assert not server.uploaded


def test_waiting_outlasts_a_server_that_is_away(inferctl: Any, http_server: Any, server: Server, file: Path) -> None:
    away = iter([503, 502])

    def answer(asked: Asked) -> Answer:
        if asked.method == "GET" and (status := next(away, None)):
            return Answer(status, {"error": {"message": "away", "code": "broker_unavailable"}})
        return server.answer(asked)

    result = inferctl("batch", "submit", str(file), "--wait", "--json", "--url", http_server(answer).url)
    assert (result.status, json.loads(result.out)["status"]) == (0, "completed")


def test_waiting_ends_with_a_server_that_stays_away(
    inferctl: Any, http_server: Any, server: Server, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferflux.cli.jobs.AWAY_S", 0.0)

    def answer(asked: Asked) -> Answer:
        return Answer(503, {"error": {"message": "away"}}) if asked.method == "GET" else server.answer(asked)

    result = inferctl("batch", "submit", str(file), "--wait", "--url", http_server(answer).url)
    assert result.status == 1
    assert "away" in result.err


def test_the_rate_is_that_of_what_was_seen() -> None:
    rate = Rate()
    rate.take(10.0, 100, 500, 1000)
    rate.take(20.0, 200, 500, 3000)
    assert rate.tokens_per_s == 200
    assert rate.left_s == 30
