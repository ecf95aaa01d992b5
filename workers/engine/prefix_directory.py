"""The directory of saved prefixes that one engine has to itself."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import IO

from inferflux.config.logs import get_logger

from .prefix_file import PrefixFileError, read_header, read_state, write_prefix
from .prefix_index import PrefixIndex, Saved

log = get_logger("engine.offload")

SUFFIX = ".kv"
LOCK = "lock"


class PrefixDirectory:
    """A subdirectory of `root` for this model that no other process uses, found again after a restart.

    Opening creates and locks it; raises OSError, here and later, when the file system does not do its part.
    """

    def __init__(self, root: Path, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._lock: IO[bytes]
        digest = hashlib.blake2b(fingerprint.encode(), digest_size=8).hexdigest()
        number = 0
        while not self._take(root / f"{digest}-{number}"):
            number += 1

    def scan(self, index: PrefixIndex) -> None:
        """Fill the index with what an earlier process left, and remove what cannot be used."""
        for draft in self.path.glob("*.tmp"):
            draft.unlink(missing_ok=True)
        found = sorted(self.path.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
        for path in found:
            try:
                with path.open("rb") as file:
                    header = read_header(file, self._fingerprint)
                    num_bytes = os.fstat(file.fileno()).st_size
                if path != self._path_of(header.chain[-1]):
                    raise PrefixFileError("it has another one's name")
            except PrefixFileError as error:
                self._reject(path, error)
                continue
            for gone in index.add(Saved(header.chain, num_bytes)):
                self.remove(gone.key)

    def write(self, chain: tuple[bytes, ...], state: bytes) -> None:
        write_prefix(self._path_of(chain[-1]), self._fingerprint, chain, state)

    def read(self, key: bytes) -> bytes | None:
        """None, and the file is gone, when it does not hold what was written."""
        path = self._path_of(key)
        try:
            state = read_state(path, self._fingerprint)
            os.utime(path)
        except FileNotFoundError:
            log.warning("a saved prefix is gone", path=str(path))
            return None
        except PrefixFileError as error:
            self._reject(path, error)
            return None
        return state

    def remove(self, key: bytes) -> None:
        self._path_of(key).unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()

    def _take(self, path: Path) -> bool:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(os.open(path / LOCK, os.O_CREAT | os.O_RDWR, 0o600), "rb")  # noqa: SIM115 - held until `close`
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self.path, self._lock = path, lock
        return True

    def _path_of(self, key: bytes) -> Path:
        return self.path / f"{key.hex()}{SUFFIX}"

    def _reject(self, path: Path, error: PrefixFileError) -> None:
        log.warning("a saved prefix is not used", path=str(path), reason=str(error))
        path.unlink(missing_ok=True)
