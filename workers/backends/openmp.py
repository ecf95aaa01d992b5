"""How the threads of a native library wait for each other."""

from __future__ import annotations

import os

SPIN_COUNT = "2000"


def spin_briefly() -> None:
    """Let OpenMP threads spin for about 0.1 ms at a barrier and sleep after that, unless the operator has said
    otherwise. To be called before the library is loaded.

    A model computes hundreds of barriers a token. Threads that sleep at once make a step take twice as long on an idle
    machine. Threads that spin for long, as GNU's do by default, keep the core that the one they wait for needs as
    soon as something else runs too. Quickest and median step of SmolLM2-135M (Q8_0, one sequence) while other programs
    came and went on two cores: sleeping at once 28 and 46 ms, this 16 and 53 ms, the default 14 and 365 ms.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
