"""Binding OpenMP's threads to cores, where each core has one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, MutableMapping

from .cores import num_cores

PROC_BIND = "OMP_PROC_BIND"
PLACES = "OMP_PLACES"


@contextlib.contextmanager
def bound_threads(num_threads: int, environ: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Import a library that brings OpenMP within this block.

    When such a thread is pushed aside for a moment it may come back on the core of another, which waits for it by
    spinning: until the kernel separates them again both stand still. Where the threads fill the machine no core is
    spared by leaving them free. Whoever has set one of the variables has decided, and with fewer threads the kernel
    chooses better than a list of cores that other processes have too.
    """
    may_bind = hasattr(os, "sched_setaffinity") and not environ.keys() & {PROC_BIND, PLACES}
    if not may_bind or num_threads < num_cores():
        yield
        return
    own = os.sched_getaffinity(0)
    environ.update({PROC_BIND: "close", PLACES: "cores"})
    try:
        yield
    finally:
        # The thread that loads the library is bound as well, and others inherit that from it.
        os.sched_setaffinity(0, own)
        for name in (PROC_BIND, PLACES):
            del environ[name]
