"""Where a registry entry's file comes from."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from inferflux.registry.download import DownloadFailed, alone, url_of


def test_sources_that_are_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.test/")
    assert url_of("hf:org/repo/deep/a b.gguf") == "http://hub.test/org/repo/resolve/main/deep/a%20b.gguf"
    assert url_of("https://host/x.gguf") == "https://host/x.gguf"
    assert url_of("models/x.gguf") is None
    assert url_of("pypi:package") is None
    with pytest.raises(DownloadFailed, match="names no file"):
        url_of("hf:org/repo")


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
    other.join(5)
    assert order == ["first", "second"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadFailed, match="cannot write to"), alone(tmp_path / "file" / "a.gguf"):
        pass
