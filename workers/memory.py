"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """Slow; any thread. The C library keeps what an engine freed for whoever asks next: a model that is gone would
    weigh on the machine. Does nothing where the C library cannot be asked."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
