"""llama.cpp's log, as lines of the process's own."""

from __future__ import annotations

import ctypes
from collections import deque

import llama_cpp.llama_cpp as lib

from inferflux.config.logs import get_logger

log = get_logger("llamacpp")

_WARN, _ERROR, _CONTINUED = 3, 4, 5


class NativeLog:
    """Sends errors to the log as errors, and everything else as debug lines. Keeps the last problems for messages."""

    def __init__(self) -> None:
        self._problems: deque[str] = deque(maxlen=3)
        self._level = 0
        # The library keeps the pointer for the life of the process, so this object must live as long.
        self._callback = lib.llama_log_callback(self._write)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def take_problems(self) -> str:
        """What went wrong last, for an error message."""
        text = "; ".join(self._problems)
        self._problems.clear()
        return text or "llama.cpp gave no reason"

    def _write(self, level: int, text: bytes, _: object) -> None:
        self._level = self._level if level == _CONTINUED else level
        line = text.decode(errors="replace").strip()
        if not line or line == ".":
            return
        if self._level == _ERROR:
            self._problems.append(line)
            log.error("native", text=line)
        elif self._level == _WARN:
            self._problems.append(line)
            log.debug("native warning", text=line)
        else:
            log.debug("native", text=line)


native_log = NativeLog()
