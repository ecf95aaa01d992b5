"""How many cores a process really has: its affinity and its quota, hyper-threads counted once."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil


def num_physical_cores(sysfs: Path = Path("/sys")) -> int:
    """Physical cores that this process may use at once, at least 1."""
    return max(1, min(num_cores(sysfs), _quota(sysfs)))


def num_cores(sysfs: Path = Path("/sys")) -> int:
    """Physical cores that this thread may run on, at least 1; a quota may allow fewer at once."""
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or 1
    return len({_siblings(sysfs, cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(sysfs: Path, cpu: int) -> str:
    """The hardware threads that share this one's core, as text that is equal for all of them."""
    try:
        return (sysfs / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(sysfs: Path) -> int:
    """Whole cores that the control group grants; a large number when it sets no limit."""
    try:
        limit, period = (sysfs / "fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(limit) / int(period))
    except (OSError, ValueError):
        return 1 << 16
