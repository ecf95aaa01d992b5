"""A backup as a file: a tar of one head and one snapshot for each stream, and of the embedded server's credentials."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Self

import msgspec

from inferflux.broker.credentials import CREDENTIALS_FILE
from inferflux.broker.snapshot import Head
from inferflux.config.version import package_version

from .errors import CommandFailed

FORMAT = 1
CHUNK = 128 * 1024
_ABOUT = "inferflux-backup.json"


class Entry(msgspec.Struct, frozen=True):
    """One stream of a backup; `sha256` is that of its snapshot."""

    name: str
    head: Head
    sha256: str


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The last member of the archive: one that was cut short has none."""

    format: int
    version: str
    at: float
    streams: list[Entry]


class ArchiveWriter:
    """Writes beside the target and renames at the end. The file holds prompts and secrets: its owner alone reads it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: list[Entry] = []

    def __enter__(self) -> Self:
        try:
            handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        except OSError as error:
            raise CommandFailed(f"cannot write to {self._path.parent}: {error.strerror}") from None
        self._partial = Path(name)
        self._file = os.fdopen(handle, "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            about = About(format=FORMAT, version=package_version(), at=time.time(), streams=self._entries)
            self._add(_ABOUT, io.BytesIO(data := msgspec.json.encode(about)), len(data))
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._partial, self._path)
        else:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    async def stream(self, name: str, head: Head, chunks: AsyncIterator[bytes]) -> int:
        """Add one stream; returns its size in bytes."""
        digest = hashlib.sha256()
        with tempfile.TemporaryFile(dir=self._path.parent) as spool:
            async for chunk in chunks:
                digest.update(chunk)
                spool.write(chunk)
            size = spool.tell()
            spool.seek(0)
            self._add(f"streams/{name}", spool, size)
        self._entries.append(Entry(name, head, digest.hexdigest()))
        return size

    def credentials(self, content: bytes) -> None:
        """Add what the embedded server would otherwise make anew: prompts are stamped with its secrets."""
        self._add(CREDENTIALS_FILE, io.BytesIO(content), len(content))

    def _add(self, name: str, content: IO[bytes], size: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = size, 0o600, int(time.time())
        self._tar.addfile(member, content)


class Archive:
    """A backup that is read; checked as a whole before anything of it is used."""

    def __init__(self, path: Path) -> None:
        try:
            self._tar = tarfile.open(path)  # noqa: SIM115
            self.about = msgspec.json.decode(self._read(_ABOUT), type=About)
        except FileNotFoundError:
            raise CommandFailed(f"there is no file {path}") from None
        except (OSError, tarfile.TarError, KeyError, msgspec.DecodeError) as error:
            raise CommandFailed(f"{path} is no whole backup of InferFlux: {error}") from None
        if self.about.format != FORMAT:
            raise CommandFailed(f"{path} has format {self.about.format}, this version reads {FORMAT}")
        for entry in self.about.streams:
            digest = hashlib.sha256()
            for chunk in self.chunks(entry.name):
                digest.update(chunk)
            if digest.hexdigest() != entry.sha256:
                raise CommandFailed(f"{path} is damaged: stream {entry.name} is not what was written")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def chunks(self, stream: str) -> Iterator[bytes]:
        file = self._tar.extractfile(f"streams/{stream}")
        assert file is not None, "streams are files"
        while chunk := file.read(CHUNK):
            yield chunk

    def credentials(self) -> bytes | None:
        """None in a backup of an external server."""
        return self._read(CREDENTIALS_FILE) if CREDENTIALS_FILE in self._tar.getnames() else None

    def _read(self, name: str) -> bytes:
        file = self._tar.extractfile(name)
        assert file is not None, "members are files"
        return file.read()
