"""The command for GPU machines: what of it needs no GPU runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[4] / "benchmarks" / "gpu" / "run.sh"
TIMEOUT_S = 300.0


def test_a_whole_worker_over_the_broker_in_memory() -> None:
    environ = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        [SCRIPT, "--rehearse"], env=environ, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("tiny | ")]
    assert [row[1] for row in rows] == ["1", "4"]
    assert all(float(row[2]) > 0 for row in rows)
