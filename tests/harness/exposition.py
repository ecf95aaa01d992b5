"""What processes expose to a collector, and promtool's judgement of rules over it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

STEP_S = 15
NUM_BEFORE, NUM_DURING = 24, 60

_COUNTER = re.compile(r"^\w+_(total|bucket|count|sum)\{")

# Of one moment: each series as Prometheus writes it, and its value.
Scrape = Mapping[str, float]


def read(text: str, *, job: str, instance: str) -> dict[str, float]:
    """The samples of one target's answer, labelled as a collector labels them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {**sample.labels, "instance": instance, "job": job}
            inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(labels.items()))
            found[f"{sample.name}{{{inner}}}"] = sample.value
    return found


def promtool() -> str:
    """Skips the test where there is none."""
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("promtool is not installed")
    return binary


def fires(
    rules: Path,
    folder: Path,
    before: Scrape,
    during: Scrape,
    expected: Mapping[str, bool],
    more: Mapping[str, str] | None = None,
) -> None:
    """Play six minutes of `before` and a quarter of an hour of `during`, and series given in promtool's own notation;
    fails unless each alert fires or does not as expected."""
    series = [
        {"series": name, "values": _values(name, before.get(name), during.get(name))}
        for name in sorted({*before, *during})
    ]
    series += [{"series": name, "values": values} for name, values in (more or {}).items()]
    lasts = f"{(NUM_BEFORE + NUM_DURING) * STEP_S}s:{STEP_S}s"
    checks: list[dict[str, Any]] = []
    for alert, fired in expected.items():
        firing = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
        checks.append(
            {
                "expr": f"count(count_over_time({firing}[{lasts}])) > bool 0 or vector(0)",
                "eval_time": f"{(NUM_BEFORE + NUM_DURING) * STEP_S}s",
                "exp_samples": [{"labels": "{}", "value": int(fired)}],
            }
        )
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": f"{STEP_S}s",
        "tests": [{"interval": f"{STEP_S}s", "input_series": series, "promql_expr_test": checks}],
    }
    path = folder / "rules-test.yaml"
    path.write_text(yaml.safe_dump(test, sort_keys=False))
    done = subprocess.run([promtool(), "test", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _values(name: str, before: float | None, during: float | None) -> str:
    """What counters counted in the incident they go on counting at that pace, every five minutes."""
    pace = 0.0
    if during is not None and _COUNTER.search(name):
        pace = (during - (before or 0.0)) * STEP_S / 300
    parts = [f"_x{NUM_BEFORE}" if before is None else f"{before:g}+0x{NUM_BEFORE - 1}"]
    parts.append(f"_x{NUM_DURING}" if during is None else f"{during:g}+{max(0.0, pace):g}x{NUM_DURING - 1}")
    return " ".join(parts)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
