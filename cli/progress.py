"""The progress of a batch: a bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from .terminal import note

LINE_EVERY_S = 10.0


class Rate:
    """Tokens a second and the time that is left, from what a batch says of itself."""

    def __init__(self) -> None:
        self._first: tuple[float, int, int] | None = None
        self.tokens_per_s = 0.0
        self.left_s: float | None = None

    def take(self, now_s: float, num_done: int, total: int, num_tokens: int) -> None:
        """What stands now; `num_tokens` are those generated."""
        if self._first is None:
            self._first = (now_s, num_done, num_tokens)
        first_s, first_done, first_tokens = self._first
        passed_s = now_s - first_s
        if passed_s <= 0:
            return
        self.tokens_per_s = (num_tokens - first_tokens) / passed_s
        lines_per_s = (num_done - first_done) / passed_s
        self.left_s = (total - num_done) / lines_per_s if lines_per_s > 0 else None


def watch(batches: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Show a batch until it has ended, on stderr. Returns it as it ended."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    rate, last, said_s = Rate(), dict[str, Any](), 0.0
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("validating", total=None, figures="")
        for batch in batches:
            last = batch
            counts = batch["request_counts"]
            num_done = counts["completed"] + counts["failed"]
            rate.take(time.monotonic(), num_done, counts["total"], batch["usage"]["output_tokens"])
            figures = _figures(counts, num_done, rate)
            bar.update(
                task,
                description=batch["status"],
                total=counts["total"] or None,
                completed=num_done,
                figures=figures,
            )
            if not console.is_terminal and time.monotonic() - said_s >= LINE_EVERY_S:
                said_s = time.monotonic()
                note(f"{batch['status']}: {figures}")
    return last


def _figures(counts: dict[str, int], num_done: int, rate: Rate) -> str:
    left = "-" if rate.left_s is None else _duration(rate.left_s)
    return (
        f"{num_done}/{counts['total']} lines, {rate.tokens_per_s:.0f} tokens/s, {left} left, {counts['failed']} errors"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
