"""The audit log: who did what, when, from where, and what came of it; one JSON object a line, chained (`chain.py`).

A line is taken on the event loop and written by a thread, so that no request waits for a disk. The file may be renamed
away at any time: the next line goes into a new one.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from .chain import Chain, Head
from .errors import ConfigError
from .lifeline import supervised_name
from .logs import get_logger
from .settings import LoggingSettings
from .version import package_version

log = get_logger("audit")

Verdict = Literal["allowed", "denied", "failed"]

MAX_WAITING = 10_000
RETRY_S = 1.0
CLOSE_S = 5.0


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who, and from where: `id` names a key or a subject and is never a secret; `source` is an address, or `nats`."""

    id: str | None = None
    tenant: str | None = None
    source: str | None = None


SYSTEM = Actor(id="system")


def _nothing(_: int) -> None:
    """Counts nothing."""


class Audit:
    """One process's log; without a file every call does nothing. `broken` while lines cannot be written: they wait, at
    most `MAX_WAITING` of them. `on_written` and `on_lost` are told numbers of lines, on any thread."""

    def __init__(self, settings: LoggingSettings | None = None, process: str = "") -> None:
        """Opens the file. Raises ConfigError when that fails."""
        settings = settings or LoggingSettings()
        self.on_written: Callable[[int], None] = _nothing
        self.on_lost: Callable[[int], None] = _nothing
        self.broken = False
        self.head: Head | None = None
        self.keeps_prompts = settings.audit_prompts
        self._required = settings.audit_required
        self._lines: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._num_lost = 0
        self._num_lost_told = 0
        self._closing = False
        self._thread: threading.Thread | None = None
        if settings.audit_log is None:
            return
        chain = Chain(f"{process or 'process'}-{secrets.token_hex(6)}")
        self._writer = Writer(Path(settings.audit_log), chain)
        try:
            self._writer.open()
        except OSError as error:
            raise ConfigError(f"logging.audit_log: {settings.audit_log} cannot be written: {error}") from None
        self._thread = threading.Thread(target=self._run, name="audit log", daemon=True)
        self._thread.start()
        self.record("audit.opened", SYSTEM, "allowed", pid=os.getpid(), version=package_version())

    @classmethod
    def of_process(cls, settings: LoggingSettings, kind: str) -> Audit:
        """The log of the process that this is; SIGHUP reopens it, where there is one, and ends nothing. Call it on the
        event loop."""
        audit = cls(settings, supervised_name(os.environ) or kind)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, audit.reopen)
        return audit

    @property
    def active(self) -> bool:
        return self._thread is not None

    @property
    def refuses(self) -> bool:
        """Whether requests must be refused because what becomes of them could not be recorded."""
        return self._required and self.broken

    def record(self, action: str, actor: Actor, verdict: Verdict, *, request: str | None = None, **detail: Any) -> None:
        """Take one line. `action` is `noun.verb`; `detail` is what the reader needs beyond that, without secrets."""
        if self._thread is None or self._closing:
            return
        if self._lines.qsize() >= MAX_WAITING:
            self._num_lost += 1
            self.on_lost(1)
            return
        self._lines.put(_line(action, actor, verdict, request=request, detail=detail or None))

    def reopen(self) -> None:
        """Write to a new file from the next line on, and look now: the name stands for another file, or for none."""
        if self._thread is not None:
            self._writer.stale = True
            self._lines.put(None)

    def close(self) -> None:
        """Write what was taken, then stop; what cannot be written within a few seconds is lost."""
        if self._thread is not None:
            self.record("audit.closed", SYSTEM, "allowed")
            self._closing = True
            self._lines.put(None)
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        pending: list[bytes] = []
        while pending or not self._closing or not self._lines.empty():
            if not pending:
                pending = self._take()
            self._write(pending)

    def _take(self) -> list[bytes]:
        line = self._lines.get()
        pending = []
        while True:
            if line is not None:
                pending.append(self._writer.link(line))
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                break
        if num_lost := self._num_lost - self._num_lost_told:
            self._num_lost_told += num_lost
            pending.append(self._writer.link(_line("audit.lost", SYSTEM, "failed", detail={"num_lines": num_lost})))
        return pending

    def _write(self, pending: list[bytes]) -> None:
        try:
            self._writer.write(b"".join(pending))
        except OSError as error:
            if not self.broken:
                log.error("audit log cannot be written; its lines wait", reason=str(error))
            self.broken = True
            time.sleep(RETRY_S)
            return
        if self.broken:
            log.info("audit log is written again")
        self.broken = False
        self.head = self._writer.head
        self.on_written(len(pending))
        pending.clear()


class Writer:
    """The file. Whole lines are appended under a lock, so that processes may share it, and what was written in part,
    because the disk was full, is taken back."""

    def __init__(self, path: Path, chain: Chain) -> None:
        self.stale = False
        self._path = path
        self._chain = chain
        self._file: int | None = None

    @property
    def head(self) -> Head:
        return msgspec.structs.replace(self._chain.head, at=time.time())

    def link(self, line: Mapping[str, Any]) -> bytes:
        """The line as it will be written, its time spelled out (UTC)."""
        seconds = line["ts"]
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return self._chain.link({**line, "ts": f"{clock}.{int(seconds % 1 * 1000):03d}Z"})

    def open(self) -> int:
        """Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._file

    def write(self, data: bytes) -> None:
        """Raises OSError; then nothing of it is in the file."""
        file = self._current()
        if not data:
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                data = b"\n" + data
            try:
                written = 0
                while written < len(data):
                    written += os.write(file, data[written:])
            except OSError:
                os.ftruncate(file, size)
                raise
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)

    def _current(self) -> int:
        """The file that the path names now."""
        file, stale = self._file, self.stale
        self.stale = False
        if file is not None and not stale and self._is(file):
            return file
        if file is not None:
            os.close(file)
            self._file = None
        return self.open()

    def _is(self, file: int) -> bool:
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(file))


def _line(action: str, actor: Actor, verdict: Verdict, **rest: object) -> dict[str, Any]:
    """The fields of a line that have a value."""
    line: dict[str, Any] = {"ts": time.time(), "action": action, "verdict": verdict}
    optional = {"actor": actor.id, "tenant": actor.tenant, "source": actor.source, **rest}
    return line | {name: value for name, value in optional.items() if value is not None}
