"""Where a registry entry's file comes from."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from inferflux.registry.download import Download, DownloadFailed, alone, url_of


def test_sources_that_are_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.test/")
    assert url_of("hf:org/repo/deep/a b.gguf") == "http://hub.test/org/repo/resolve/main/deep/a%20b.gguf"
    assert url_of("https://host/x.gguf") == "https://host/x.gguf"
    assert url_of("models/x.gguf") is None
    assert url_of("pypi:package") is None
    with pytest.raises(DownloadFailed, match="names no file"):
        url_of("hf:org/repo")


@pytest.mark.parametrize(
    ("first", "to", "says"),
    [
        ("https://93.184.215.14/a", "http://93.184.215.14/a", "no https URL"),
        ("https://93.184.215.14/a", "file:///etc/passwd", "no https URL"),
        ("http://93.184.215.14/a", "ftp://93.184.215.14/a", "no http URL"),
        ("http://93.184.215.14/a", "http://169.254.169.254/latest/meta-data", "internal address"),
        ("http://93.184.215.14/a", "http://127.0.0.1:8080/v1/models", "internal address"),
        ("http://93.184.215.14/a", "http://[::1]/a", "internal address"),
        ("http://93.184.215.14/a", "http://[::ffff:10.0.0.1]/a", "internal address"),
        ("http://93.184.215.14/a", "http://localhost/a", "internal address"),
    ],
)
def test_a_redirect_leads_nowhere_inside(tmp_path: Path, first: str, to: str, says: str) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(302, headers={"location": to})

    download = Download(tmp_path / "a.gguf", transport=httpx.MockTransport(answer))
    with pytest.raises(DownloadFailed, match=says):
        download.from_url(first)
    assert asked == [first]


def test_redirects_are_followed_a_few_times(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        number = int(request.url.path.rpartition("/")[2])
        if number:
            return httpx.Response(302, headers={"location": f"/hop/{number - 1}"})
        return httpx.Response(200, content=b"GGUF and the rest")

    transport = httpx.MockTransport(answer)
    Download(tmp_path / "a.gguf", transport=transport).from_url("http://127.0.0.1/hop/5")
    assert (tmp_path / "a.gguf").read_bytes() == b"GGUF and the rest"
    with pytest.raises(DownloadFailed, match="5 times"):
        Download(tmp_path / "b.gguf", transport=transport).from_url("http://127.0.0.1/hop/6")


def test_one_at_a_time_brings_a_file_here(tmp_path: Path) -> None:
    order = []
    entered = threading.Event()

    def second() -> None:
        entered.set()
        with alone(tmp_path / "deep" / "a.gguf"):
            order.append("second")

    with alone(tmp_path / "deep" / "a.gguf"):
        other = threading.Thread(target=second)
        other.start()
        entered.wait()
        order.append("first")
    other.join(60)
    assert order == ["first", "second"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadFailed, match="cannot write to"), alone(tmp_path / "file" / "a.gguf"):
        pass
