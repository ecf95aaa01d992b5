"""Jobs: a batch as the command line handles one: files to send, progress to show, answers to fetch."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from .errors import CommandFailed

if TYPE_CHECKING:
    from .client import Client

FILES = "/v1/files"
BATCHES = "/v1/batches"
CHAT = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")
POLL_S = 1.0
AWAY_S = 120.0
"""How long the server may be away while a batch is followed: it, or another replica, goes on with the batch."""


def endpoint_of(path: Path) -> str | None:
    """The endpoint that a file's first line names, where there is one. Raises CommandFailed."""
    for line in _lines(path):
        try:
            url = json.loads(line).get("url")
        except (ValueError, AttributeError):
            return None
        return url if isinstance(url, str) else None
    return None


@contextmanager
def with_model(path: Path, model: str | None) -> Iterator[Path]:
    """The file, or a copy in which each line asks for the model."""
    if model is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        with copy.open("wb") as out:
            for number, line in enumerate(_lines(path), 1):
                out.write(_asking(line, model, f"{path}:{number}"))
        yield copy


@contextmanager
def from_prompts(prompts: Iterable[str], model: str | None, **options: Any) -> Iterator[Path]:
    """A file of chats, one for each prompt; the ids count from 0."""
    given = {name: value for name, value in options.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        with path.open("w", encoding="utf-8") as out:
            for number, prompt in enumerate(prompts):
                body = {"messages": [{"role": "user", "content": prompt}], **given}
                if model is not None:
                    body["model"] = model
                request = {"custom_id": str(number), "method": "POST", "url": CHAT, "body": body}
                out.write(json.dumps(request, ensure_ascii=False) + "\n")
        yield path


def submit(client: Client, path: Path, endpoint: str, window: str, metadata: dict[str, str] | None) -> dict[str, Any]:
    """Upload a file and make a batch of it."""
    file = client.upload(FILES, path, {"purpose": "batch"})
    body: dict[str, Any] = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": window}
    if metadata:
        body["metadata"] = metadata
    return client.post(BATCHES, body)


def show(client: Client, ident: str) -> dict[str, Any]:
    return client.get(f"{BATCHES}/{quote(ident, safe='')}")


def follow(client: Client, ident: str) -> Iterator[dict[str, Any]]:
    """The batch as it goes on, once a second, until it has ended. A server that is away for a while is waited for."""
    heard_s = time.monotonic()
    while True:
        try:
            batch = show(client, ident)
        except CommandFailed as error:
            if getattr(error, "status", 503) < 500 or time.monotonic() - heard_s > AWAY_S:
                raise
        else:
            heard_s = time.monotonic()
            yield batch
            if batch["status"] in OVER:
                return
        time.sleep(POLL_S)


def fetch(client: Client, file: str | None, out: IO[bytes]) -> int:
    """Write a result file's bytes; how many there were."""
    if file is None:
        return 0
    return client.download(f"{FILES}/{quote(file, safe='')}/content", out)


def check_ended_well(batch: dict[str, Any]) -> None:
    """Raises CommandFailed for a batch that was not completed."""
    if batch["status"] == "completed":
        return
    problems = (batch.get("errors") or {}).get("data") or []
    lines = [f"\n  {place(problem)}{problem['message']} [{problem['code']}]" for problem in problems[:10]]
    raise CommandFailed(f"batch {batch['id']} ended as {batch['status']}{''.join(lines)}")


def place(problem: dict[str, Any]) -> str:
    """Where a problem is, for a line of text."""
    return f"line {problem['line']}: " if problem.get("line") is not None else ""


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    yield line.removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror}") from None


def _asking(line: bytes, model: str, where: str) -> bytes:
    try:
        request = json.loads(line)
        request["body"]["model"] = model
    except (ValueError, KeyError, TypeError):
        raise CommandFailed(f"{where}: is no request; `inferctl batch validate` says why") from None
    return json.dumps(request, ensure_ascii=False).encode() + b"\n"


def answers(client: Client, batch: dict[str, Any], num_prompts: int) -> list[tuple[str | None, str | None]]:
    """Text or error of each prompt, by its number."""
    found: list[tuple[str | None, str | None]] = [(None, f"the batch ended as {batch['status']}")] * num_prompts
    for file in (batch["output_file_id"], batch["error_file_id"]):
        with tempfile.TemporaryFile() as lines:
            fetch(client, file, lines)
            lines.seek(0)
            for line in lines:
                record = json.loads(line)
                found[int(record["custom_id"])] = _answer(record)
    return found


def _answer(record: dict[str, Any]) -> tuple[str | None, str | None]:
    response = record["response"]
    if response is None:
        return None, record["error"]["message"]
    if response["status_code"] != 200:
        return None, response["body"]["error"]["message"]
    return response["body"]["choices"][0]["message"]["content"], None


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """Raises CommandFailed where the file cannot be written."""
    if str(path) == "-":
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        out = path.open("wb")
    except OSError as error:
        raise CommandFailed(f"{path} cannot be written: {error.strerror}") from None
    with out:
        yield out


def check_writable(path: Path) -> None:
    """Raises CommandFailed where `written` would; what is there stays."""
    if str(path) == "-":
        return
    try:
        path.open("ab").close()
    except OSError as error:
        raise CommandFailed(f"{path} cannot be written: {error.strerror}") from None


def opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror}") from None
