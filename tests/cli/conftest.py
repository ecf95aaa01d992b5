from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from harness.http import Answer, Asked, HttpServer

from inferflux.cli.main import main


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INFERCTL_API_KEY", "INFERCTL_URL", "HF_ENDPOINT", "FORCE_COLOR", "INFERFLUX_SUPERVISED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def inferctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command in this process, as the console script does."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr("sys.argv", ["inferctl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def http_server() -> Iterator[Callable[[Callable[[Asked], Answer]], HttpServer]]:
    """Start scripted HTTP servers that end with the test."""
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(HttpServer(answer).running())
