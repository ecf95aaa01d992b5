"""Bringing one file here, in parts if need be: never visible under its name before it is whole and verified."""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx

from inferflux.config.errors import InferFluxError

CHUNK = 1024 * 1024
GGUF_MAGIC = b"GGUF"

MAX_REDIRECTS = 5
MODEL_HUB = "https://huggingface.co"

_SHA256 = re.compile(r"[0-9a-f]{64}")

# (bytes here so far, bytes in all or None)
Progress = Callable[[int, int | None], None]


class DownloadFailed(InferFluxError):
    """A file could not be brought here; the message names the cause and, where there is one, the fix."""


class Download:
    """One file on its way to `target`; what has arrived waits in `<target>.part` for the next try.

    `sha256` is checked when given. Hubs that name a file's digest in `X-Linked-ETag` are held to it.
    """

    def __init__(
        self,
        target: Path,
        *,
        sha256: str | None = None,
        progress: Progress | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if sha256 is not None and not _SHA256.fullmatch(sha256.lower()):
            raise DownloadFailed(f"{sha256!r} is no SHA-256 digest: it has 64 hex digits")
        self.target = target
        self._sha256 = sha256.lower() if sha256 else None
        self._progress = progress or (lambda done, total: None)
        self._transport = transport
        self._part = target.with_name(target.name + ".part")
        self._tag = target.with_name(target.name + ".part.etag")

    def from_file(self, source: Path) -> str:
        """Copy a local file. Returns its SHA-256."""
        try:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            total = source.stat().st_size
            with source.open("rb") as reader, self._part.open("wb") as writer:
                for chunk in iter(lambda: reader.read(CHUNK), b""):
                    writer.write(chunk)
                    self._progress(writer.tell(), total)
        except OSError as error:
            raise DownloadFailed(f"cannot copy {source}: {error.strerror or error}") from None
        return self._finish()

    def from_url(self, url: str) -> str:
        """Fetch over HTTP, going on where an earlier try stopped. Returns the file's SHA-256."""
        try:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            with httpx.Client(timeout=httpx.Timeout(60.0, connect=15.0), transport=self._transport) as http:
                self._fetch(http, url)
        except httpx.HTTPError as error:
            raise DownloadFailed(f"{url}: {error or type(error).__name__}; run the command again to go on") from None
        except OSError as error:
            raise DownloadFailed(f"cannot write {self._part}: {error.strerror or error}") from None
        return self._finish()

    def _fetch(self, http: httpx.Client, url: str) -> None:
        have = self._part.stat().st_size if self._part.exists() else 0
        tag = self._tag.read_text() if self._tag.exists() else ""
        # Identity: a range of a compressed answer would not be a range of the file. If-Range: a file that changed
        # since is sent whole.
        headers = {"Accept-Encoding": "identity"}
        if have and tag:
            headers |= {"Range": f"bytes={have}-", "If-Range": tag}
        with self._answer(http, url, headers) as response:
            if response.status_code == 416 and _range_total(response) == have:
                return
            if response.status_code == 416:
                self._forget()
            if response.is_error:
                raise DownloadFailed(f"{url}: the server answered with HTTP status {response.status_code}")
            resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            )
            etag = response.headers.get("ETag", "")
            # A weak validator must not be used with If-Range (RFC 9110, section 13.1.5).
            self._tag.write_text("" if etag.startswith("W/") else etag)
            self._write(response.iter_bytes(), have if resumed else 0, response)

    @contextmanager
    def _answer(self, http: httpx.Client, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """What answers where the URL leads in the end."""
        at = first = httpx.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            with http.stream("GET", at, headers=headers) as response:
                self._linked_digest(response)
                if not response.has_redirect_location:
                    yield response
                    return
                at = at.join(response.headers["location"])
            check_redirect(first, at)
        raise DownloadFailed(f"{url} leads from one address to the next, {MAX_REDIRECTS} times and more")

    def _write(self, chunks: Iterator[bytes], start: int, response: httpx.Response) -> None:
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        self._check_room(total, start)
        with self._part.open("ab" if start else "wb") as part:
            for number, chunk in enumerate(chunks):
                if number == 0 and start == 0 and len(chunk) >= len(GGUF_MAGIC):
                    self._check_magic(chunk)
                part.write(chunk)
                self._progress(part.tell(), total)

    def _linked_digest(self, response: httpx.Response) -> None:
        linked = response.headers.get("X-Linked-ETag", "").strip('"')
        if self._sha256 is None and _SHA256.fullmatch(linked):
            self._sha256 = linked

    def _check_room(self, total: int | None, start: int) -> None:
        free = shutil.disk_usage(self._part.parent).free
        if total is not None and total - start > free:
            raise DownloadFailed(
                f"{self.target.name} needs {(total - start) / 1e9:.1f} GB more, but {self._part.parent} has "
                f"{free / 1e9:.1f} GB free: make room or use --to"
            )

    def _check_magic(self, start: bytes) -> None:
        if not start.startswith(GGUF_MAGIC):
            self._forget()
            raise DownloadFailed("this is no GGUF file (its first bytes are not GGUF): look for one that ends in .gguf")

    def _finish(self) -> str:
        with self._part.open("rb") as part:
            self._check_magic(part.read(len(GGUF_MAGIC)))
            part.seek(0)
            digest = hashlib.file_digest(part, "sha256").hexdigest()
        if self._sha256 not in (None, digest):
            self._forget()
            raise DownloadFailed(
                f"{self.target.name} has SHA-256 {digest}, not {self._sha256}: it was removed; check the source"
            )
        os.replace(self._part, self.target)
        self._forget()
        return digest

    def _forget(self) -> None:
        self._part.unlink(missing_ok=True)
        self._tag.unlink(missing_ok=True)


def check_redirect(first: httpx.URL, to: httpx.URL) -> None:
    """What was asked for is the operator's choice, where it leads is not: an address of the Internet may lead to no
    internal one, and https to nothing else. Raises DownloadFailed."""
    if to.scheme not in ("http", "https") or first.scheme == "https" != to.scheme:
        raise DownloadFailed(f"{first} leads to {to}, which is no {first.scheme} URL: it is not followed")
    if is_internal(to.host) and not is_internal(first.host):
        raise DownloadFailed(f"{first} leads to {to}, which is an internal address: it is not followed")


def is_internal(host: str) -> bool:
    """Whether a host is, or has, an address that is not reached from everywhere."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        # Only a proxy can know it.
        return False
    return any(not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in found)


def url_of(source: str) -> str | None:
    """Where `hf:ORG/REPO/FILE` or a URL leads; None for anything else. Raises DownloadFailed."""
    kind, _, rest = source.partition(":")
    if kind in ("http", "https"):
        return source
    if kind != "hf":
        return None
    parts = [part for part in rest.split("/") if part]
    if len(parts) < 3:
        raise DownloadFailed(f"hf:{rest} names no file: write it as hf:ORG/REPO/FILE")
    base = os.environ.get("HF_ENDPOINT", MODEL_HUB).rstrip("/")
    return f"{base}/{quote('/'.join(parts[:2]))}/resolve/main/{quote('/'.join(parts[2:]))}"


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Wait until no other process of this machine brings the same file here. Raises DownloadFailed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(target.name + ".lock").open("w")
    except OSError as error:
        raise DownloadFailed(f"cannot write to {target.parent}: {error.strerror or error}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _range_total(response: httpx.Response) -> int | None:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None
