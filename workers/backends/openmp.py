"""How the threads of a native library wait for each other."""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Let OpenMP threads sleep at a barrier instead of spinning, unless the operator has said otherwise.

    A model computes hundreds of barriers a token. A spinning thread waits for one that has lost its core to another
    process, and keeps the core that this one needs: with both cores of a machine taken, a step of 8 ms took from 60 ms
    to 5 s, and 30 to 70 ms with sleeping threads. To be called before the library is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
