from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from inferflux.workers.engine import offload as offload_module
from inferflux.workers.engine import prefix_file
from inferflux.workers.engine.offload import Offload
from inferflux.workers.engine.prefix_directory import PrefixDirectory
from inferflux.workers.engine.prefix_index import Saved

TIMEOUT_S = 30.0
STATE = b"state" * 1000

Open = Callable[..., Offload]


def chain(name: str, num_pages: int = 3) -> tuple[bytes, ...]:
    return tuple(f"{name}{page}".encode().ljust(16, b".") for page in range(num_pages))


def fetch(offload: Offload, name: str) -> bytes | None:
    """What a lookup brings; the index must know of it."""
    found = offload.find(chain(name))
    assert found is not None
    arrived: Future[bytes | None] = Future()
    offload.fetch(found[0], lambda state, took_s: arrived.set_result(state))
    return arrived.result(TIMEOUT_S)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "nvme"


@pytest.fixture
def opened(root: Path) -> Iterator[Open]:
    made: list[Offload] = []

    def start(max_bytes: int = 1 << 20, fingerprint: str = "model", at: Path = root) -> Offload:
        made.append(Offload(at, max_bytes, fingerprint))
        made[-1].start()
        return made[-1]

    yield start
    for offload in made:
        offload.close(TIMEOUT_S)


def files(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.kv"))


def test_what_is_stored_comes_back(opened: Open, root: Path) -> None:
    offload = opened()
    assert offload.wants(chain("a"))
    offload.store(chain("a"), STATE)
    assert not offload.wants(chain("a"))
    assert not offload.wants(chain("a")[:2])
    assert offload.flush(TIMEOUT_S)
    assert fetch(offload, "a") == STATE
    stats = offload.stats()
    assert stats.active
    assert (stats.num_writes, stats.write_bytes, stats.num_reads, stats.read_bytes) == (1, 5000, 1, 5000)
    (path,) = files(root)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_not_written_yet_comes_from_memory(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    write = PrefixDirectory.write

    def wait(self: PrefixDirectory, pages: tuple[bytes, ...], state: bytes) -> None:
        assert gate.wait(TIMEOUT_S)
        write(self, pages, state)

    monkeypatch.setattr(PrefixDirectory, "write", wait)
    monkeypatch.setattr(offload_module, "MAX_PENDING_BYTES", 2 * len(STATE))
    offload = opened()
    for name in "ab":
        assert offload.wants(chain(name))
        offload.store(chain(name), STATE)
    assert not offload.wants(chain("c"))
    assert offload.stats().num_drops == 1
    found = offload.find(chain("b"))
    assert found is not None
    arrived: Future[tuple[bytes | None, float]] = Future()
    offload.fetch(found[0], lambda state, took_s: arrived.set_result((state, took_s)))
    gate.set()
    assert arrived.result(TIMEOUT_S) == (STATE, 0.0)
    assert offload.flush(TIMEOUT_S)
    assert offload.wants(chain("c"))


def test_a_restart_finds_what_was_there_and_takes_the_oldest_away(opened: Open, root: Path) -> None:
    first = opened()
    for name in "abc":
        first.store(chain(name), STATE)
    assert first.flush(TIMEOUT_S)
    assert fetch(first, "a") == STATE
    first.close(TIMEOUT_S)
    (root / files(root)[0].parent.name / "draft.tmp").write_bytes(b"left behind")
    second = opened(max_bytes=3 * 5500)
    assert fetch(second, "a") == STATE
    second.store(chain("d"), STATE)
    assert second.flush(TIMEOUT_S)
    assert [second.find(chain(name)) is not None for name in "abcd"] == [True, False, True, True]
    assert len(files(root)) == 3
    assert not list(root.glob("*/*.tmp"))


def test_the_disk_holds_no_more_than_the_bound(opened: Open, root: Path) -> None:
    offload = opened(max_bytes=20_000)
    for number in range(40):
        offload.store(chain(f"{number}-"), STATE[: 100 * number])
        assert offload.stats().num_bytes <= 20_000
    assert offload.flush(TIMEOUT_S)
    assert 0 < sum(path.stat().st_size for path in files(root)) <= 20_000
    offload.store(chain("large"), STATE * 5)
    assert offload.find(chain("large")) is None
    assert offload.stats().num_drops == 1


def test_a_damaged_file_is_a_miss_and_goes(opened: Open, root: Path) -> None:
    offload = opened()
    offload.store(chain("a"), STATE)
    assert offload.flush(TIMEOUT_S)
    (path,) = files(root)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert fetch(offload, "a") is None
    assert offload.find(chain("a")) is None
    assert files(root) == []
    assert offload.stats().active
    assert offload.stats().num_misses == 1


def test_foreign_files_are_not_taken_over(opened: Open, root: Path) -> None:
    first = opened()
    for name in "abc":
        first.store(chain(name), STATE)
    assert first.flush(TIMEOUT_S)
    first.close(TIMEOUT_S)
    one, two, three = files(root)
    prefix_file.write_prefix(one, "another model", chain("a"), STATE)
    two.rename(two.with_name(f"{b'z'.hex()}.kv"))
    three.write_bytes(b"no such format, but long enough to hold a preamble of one")
    second = opened()
    assert all(second.find(chain(name)) is None for name in "abc")
    assert files(root) == []


def test_engines_on_one_path_keep_out_of_each_others_way(opened: Open, root: Path) -> None:
    one, two, other = opened(), opened(), opened(fingerprint="other")
    one.store(chain("a"), STATE)
    assert one.flush(TIMEOUT_S)
    assert two.find(chain("a")) is None
    assert other.find(chain("a")) is None
    assert len(list(root.iterdir())) == 3
    one.close(TIMEOUT_S)
    assert fetch(opened(), "a") == STATE


def test_a_full_disk_ends_offloading_and_nothing_else(
    opened: Open, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    offload = opened()
    offload.store(chain("a"), STATE)
    assert offload.flush(TIMEOUT_S)
    monkeypatch.setattr(prefix_file, "_write_all", full)
    offload.store(chain("b"), STATE)
    assert offload.flush(TIMEOUT_S)
    assert not offload.stats().active
    assert offload.find(chain("a")) is None
    assert not offload.wants(chain("c"))
    offload.store(chain("c"), STATE)
    assert not list(root.glob("*/*.tmp"))


def test_a_file_system_without_room(tmp_path: Path) -> None:
    """The kernel says so, not a patch: a small file system in a name space of its own."""
    script = tmp_path / "fill.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from inferflux.workers.engine.offload import Offload\n"
        "offload = Offload(Path(sys.argv[1]), 1 << 30, 'model')\n"
        "offload.start()\n"
        "for number in range(40):\n"
        "    offload.store((number.to_bytes(16, 'big'),), bytes(100_000))\n"
        "    assert offload.flush(30.0)\n"
        "stats = offload.stats()\n"
        "offload.close(30.0)\n"
        "assert 0 < stats.num_writes < 40, stats\n"
        "assert not stats.active\n"
        "assert not list(Path(sys.argv[1]).glob('*/*.tmp'))\n"
        "print('full')\n"
    )
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}/small && exec {sys.executable} {script} {tmp_path}/small"
    (tmp_path / "small").mkdir()
    isolated = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*isolated, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("no name spaces here")
    done = subprocess.run([*isolated, "sh", "-c", mount], check=False, capture_output=True, text=True, cwd=tmp_path)
    if "mount:" in done.stderr:
        pytest.skip("no mounts here")
    assert done.stdout == "full\n", done.stderr
    assert "the disk failed" in done.stderr


def test_a_path_that_goes_away_is_a_miss_and_then_the_end(opened: Open, root: Path) -> None:
    offload = opened()
    offload.store(chain("a"), STATE)
    assert offload.flush(TIMEOUT_S)
    shutil.rmtree(root)
    assert fetch(offload, "a") is None
    assert offload.stats().active
    offload.store(chain("b"), STATE)
    assert offload.flush(TIMEOUT_S)
    assert not offload.stats().active


def test_a_path_that_cannot_be_used_is_no_error(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    offload = opened(at=tmp_path / "file")
    assert not offload.stats().active
    assert not offload.wants(chain("a"))
    assert offload.find(chain("a")) is None


def test_whoever_waits_when_the_disk_fails_is_told(opened: Open, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: PrefixDirectory, key: bytes) -> bytes | None:
        raise OSError(errno.EIO, "Input/output error")

    offload = opened()
    offload.store(chain("a"), STATE)
    assert offload.flush(TIMEOUT_S)
    monkeypatch.setattr(PrefixDirectory, "read", broken)
    assert fetch(offload, "a") is None
    assert offload.flush(TIMEOUT_S)
    found: Future[bytes | None] = Future()
    offload.fetch(Saved(chain("a"), 1), lambda state, took_s: found.set_result(state))
    assert found.result(TIMEOUT_S) is None
