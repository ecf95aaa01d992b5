"""The embedded server's store directory: who holds it, and the secrets it keeps."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import psutil

from . import credentials
from .credentials import CREDENTIALS_FILE, StoredCredentials
from .errors import ConfigError

LOCK_FILE = "lock"
RELEASE_S = 3.0


class _Holder(msgspec.Struct):
    """Who wrote the lock file: the process that started the server, and the server."""

    pid: int
    server_pid: int | None = None


class Store:
    """A directory held by a lock on an open file, which the server inherits: a crash frees it, an orphan keeps it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None

    @property
    def lock(self) -> int:
        assert self._lock is not None, "the store is not held"
        return self._lock

    def acquire(self) -> None:
        """Raises ConfigError naming the process that holds the store."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
            lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"broker.store_dir {self.path} cannot be used: {error.strerror}") from error
        # A server whose parent was killed goes away by itself within moments.
        deadline = time.monotonic() + RELEASE_S
        while not _try_lock(lock):
            holder = self._holder()
            if time.monotonic() > deadline or (holder is not None and psutil.pid_exists(holder.pid)):
                os.close(lock)
                raise ConfigError(self._taken(holder))
            time.sleep(0.05)
        self._lock = lock
        self.record(None)

    def record(self, server_pid: int | None) -> None:
        """Note who holds the store, for whoever finds it locked."""
        body = msgspec.json.encode(_Holder(os.getpid(), server_pid))
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, body, 0)

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def credentials(self, roles: Iterable[str], url: str) -> StoredCredentials:
        """The kept logins and secrets, with new ones made for roles that have none, written back."""
        stored = credentials.completed(credentials.load(self.path), roles, url)
        self.write(CREDENTIALS_FILE, msgspec.json.encode(stored))
        return stored

    def write(self, name: str, data: bytes) -> Path:
        """Replace a file in one step, readable by this user only."""
        path = self.path / name
        draft = path.with_name(f".{name}.new")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        return path

    def _holder(self) -> _Holder | None:
        try:
            return msgspec.json.decode((self.path / LOCK_FILE).read_bytes(), type=_Holder)
        except (OSError, msgspec.DecodeError):
            return None

    def _taken(self, holder: _Holder | None) -> str:
        if holder is None:
            return f"broker.store_dir {self.path} is in use by another process"
        if holder.server_pid is not None and not psutil.pid_exists(holder.pid):
            who = f"a nats-server left behind, pid {holder.server_pid}"
        else:
            who = f"process {holder.pid}"
        return f"broker.store_dir {self.path} is in use by {who}: stop it, or set another broker.store_dir"


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
