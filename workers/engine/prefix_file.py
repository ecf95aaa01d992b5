"""One saved prefix as a file: what it is, whose it is, and a checksum over all of it."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO

import msgspec

from .pages import DIGEST_BYTES

MAGIC = b"IFKV"
VERSION = 1
CHECKSUM_BYTES = 16
_PREAMBLE = struct.Struct(f"<4sHI{CHECKSUM_BYTES}s")
_MAX_HEADER_BYTES = 1 << 24
_MAX_FRAMING_BYTES = 64


class PrefixFileError(ValueError):
    """The file is damaged, or was written by another version or for another model."""


class PrefixHeader(msgspec.Struct, frozen=True, array_like=True):
    """`page_hashes` is the chain of full pages that the state holds, joined; its last one names the file."""

    fingerprint: str
    page_hashes: bytes
    num_bytes: int
    checksum: bytes

    @property
    def chain(self) -> tuple[bytes, ...]:
        hashes = self.page_hashes
        return tuple(hashes[at : at + DIGEST_BYTES] for at in range(0, len(hashes), DIGEST_BYTES))


def file_bytes(fingerprint: str, chain: tuple[bytes, ...], state: bytes) -> int:
    """What the file of a state takes at most."""
    return _PREAMBLE.size + _MAX_FRAMING_BYTES + len(fingerprint.encode()) + len(chain) * DIGEST_BYTES + len(state)


def write_prefix(path: Path, fingerprint: str, chain: tuple[bytes, ...], state: bytes) -> None:
    """Readable by the owner only, and there as a whole or not at all. Raises OSError."""
    header = msgspec.msgpack.encode(PrefixHeader(fingerprint, b"".join(chain), len(state), _checksum(state)))
    draft = path.with_suffix(".tmp")
    draft.unlink(missing_ok=True)
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb", buffering=0) as file:
            _write_all(file, _PREAMBLE.pack(MAGIC, VERSION, len(header), _checksum(header)) + header)
            _write_all(file, state)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def read_header(file: BinaryIO, fingerprint: str) -> PrefixHeader:
    """Leaves the file at the state's first byte. Raises PrefixFileError, or OSError."""
    preamble = file.read(_PREAMBLE.size)
    if len(preamble) < _PREAMBLE.size:
        raise PrefixFileError("it is too short")
    magic, version, header_bytes, checksum = _PREAMBLE.unpack(preamble)
    if magic != MAGIC or version != VERSION:
        raise PrefixFileError("it has another format")
    data = file.read(header_bytes) if header_bytes <= _MAX_HEADER_BYTES else b""
    if _checksum(data) != checksum:
        raise PrefixFileError("its header is damaged")
    try:
        header = msgspec.msgpack.decode(data, type=PrefixHeader)
    except msgspec.MsgspecError as error:
        raise PrefixFileError(f"its header cannot be read: {error}") from None
    if header.fingerprint != fingerprint:
        raise PrefixFileError("it belongs to another model")
    if not header.page_hashes or len(header.page_hashes) % DIGEST_BYTES:
        raise PrefixFileError("it names no pages")
    if os.fstat(file.fileno()).st_size != file.tell() + header.num_bytes:
        raise PrefixFileError("it was cut off")
    return header


def read_state(path: Path, fingerprint: str) -> bytes:
    """What was saved. Raises PrefixFileError, or OSError."""
    with path.open("rb") as file:
        header = read_header(file, fingerprint)
        state = file.read()
    if _checksum(state) != header.checksum:
        raise PrefixFileError("its checksum is wrong")
    return state


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES).digest()


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
