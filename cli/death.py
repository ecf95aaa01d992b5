"""Why a child process died, in words that lead to the fix."""

from __future__ import annotations

import signal
from pathlib import Path

# argparse's own status for wrong arguments, and what our processes exit with for a wrong setting.
EXIT_CONFIG = 2

_SIGNALS = {
    signal.SIGILL: (
        "SIGILL: an instruction that this processor lacks; llama.cpp was built for another one: "
        "build it again with scripts/build_llama.py"
    ),
    signal.SIGSEGV: "SIGSEGV: native code touched memory it must not, in a model library as a rule",
    signal.SIGBUS: "SIGBUS: a mapped file shrank or the disk is full; check the model file and the free space",
    signal.SIGABRT: "SIGABRT: native code gave up on an assertion of its own; its last words are above",
    signal.SIGFPE: "SIGFPE: native code divided by zero",
    signal.SIGTERM: "SIGTERM, which did not come from here",
    signal.SIGINT: "SIGINT",
}


def num_oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory since boot, where it says (Linux)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    counts = dict(line.split(" ", 1) for line in lines)
    return int(counts["oom_kill"]) if "oom_kill" in counts else None


def explain(returncode: int, *, oom_kills_before: int | None = None, oom_kills_after: int | None = None) -> str:
    """One phrase for an exit status as `subprocess` gives it: negative for a signal that was not ours."""
    if returncode >= 0:
        return "it ended by itself" if returncode == 0 else f"exit status {returncode}"
    number = -returncode
    if number == signal.SIGKILL:
        if oom_kills_before is not None and oom_kills_after is not None and oom_kills_after > oom_kills_before:
            return "SIGKILL: the kernel killed it, out of memory: use a smaller model, batch or KV cache"
        return "SIGKILL, which did not come from here: killed by hand, or out of memory"
    try:
        name = signal.Signals(number)
    except ValueError:
        return f"signal {number}"
    return _SIGNALS.get(name, name.name)
