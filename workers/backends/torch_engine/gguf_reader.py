"""The container format GGUF: metadata, and where each tensor's bytes lie.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY = 8, 9
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
DEFAULT_ALIGNMENT = 32


class StoredTensor(NamedTuple):
    """`shape` has rows first, as torch has it; `data` are the rows' bytes as they are stored."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


class GGUFReader:
    """Maps a file into memory. Raises ValueError when it is no GGUF, or is cut off."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._buffer, dtype=np.uint8)
        self._at = 0
        try:
            self._read()
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ValueError(f"it is damaged or cut off at byte {self._at}") from error

    def _read(self) -> None:
        magic, version = self._buffer[:4], self._take("4xI")
        if magic != MAGIC or version not in VERSIONS:
            raise ValueError(f"it begins with {magic!r}, version {version}; wanted {MAGIC!r}, version 2 or 3")
        num_tensors, num_fields = self._take("Q"), self._take("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(num_fields):
            name = self._string()
            self.metadata[name] = self._value(self._take("I"))
        described = [self._describe() for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        begin = -(-self._at // alignment) * alignment
        self.tensors = {name: self._tensor(begin + offset, kind, shape) for name, shape, kind, offset in described}

    def _describe(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string()
        sizes = tuple(self._take("Q") for _ in range(self._take("I")))
        kind = self._take("I")
        try:
            known = GGMLQuantizationType(kind)
        except ValueError:
            raise ValueError(f"the tensor {name} is of the unknown type {kind}") from None
        return name, sizes[::-1], known, self._take("Q")

    def _tensor(self, at: int, kind: GGMLQuantizationType, shape: tuple[int, ...]) -> StoredTensor:
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        row_bytes = shape[-1] // per_block * block_bytes
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        if at + rows * row_bytes > len(self._bytes):
            raise ValueError("its tensors reach beyond its end")
        return StoredTensor(kind, shape, self._bytes[at : at + rows * row_bytes].reshape(*shape[:-1], row_bytes))

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._take(FORMATS[kind])
        kind, count = self._take("I"), self._take("Q")
        if kind in (STRING, ARRAY):
            return [self._value(kind) for _ in range(count)]
        form = f"<{count}{FORMATS[kind]}"
        values = struct.unpack_from(form, self._buffer, self._at)
        self._at += struct.calcsize(form)
        return list(values)

    def _string(self) -> str:
        length = self._take("Q")
        if self._at + length > len(self._bytes):
            raise ValueError(f"it is cut off in a text at byte {self._at}")
        text = self._buffer[self._at : self._at + length]
        self._at += length
        return text.decode()

    def _take(self, form: str) -> Any:
        """The next number."""
        form = f"<{form}"
        (value,) = struct.unpack_from(form, self._buffer, self._at)
        self._at += struct.calcsize(form)
        return value
