"""Where one engine step goes: the library's own time and what Python adds, at several batch sizes.

    python benchmarks/step.py --gguf model.gguf [--batch 1 8 32] [--steps 40] [--temperature 0] [--clock processor]

Runs the engine without server or queue. Times are means over the steps: on the wall, or the
processor time of the engine's thread, which other programs on the machine change less.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from inferflux.config.settings import RuntimeSettings, SchedulerSettings
from inferflux.workers.backends.backend import SamplingParams
from inferflux.workers.backends.opening import open_backend
from inferflux.workers.engine.engine import Engine
from inferflux.workers.engine.job import Job, Update

WORDS_FROM = 1000
CLOCKS = {"wall": time.perf_counter, "processor": time.thread_time}


class Clock:
    """Wraps methods and adds up the seconds spent in each, by `now`; reset it once the batch is full."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        self._now = now

    def wrap(self, owner: Any, method: str, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began_s = self._now()
            try:
                return inner(*args, **kwargs)
            finally:
                self.spent_s[name] += self._now() - began_s

        setattr(owner, method, timed)


def profile(
    gguf: Path, num_sequences: int, num_steps: int, temperature: float, now: Callable[[], float]
) -> dict[str, float]:
    """Milliseconds of a step with `num_sequences` that decode, by what they were spent on."""
    settings = RuntimeSettings(scheduler=SchedulerSettings(max_batch_size=num_sequences))
    backend: Any = open_backend("llamacpp", str(gguf), settings)
    clock, done = Clock(now), threading.Event()
    spent: dict[str, float] = {}
    steps, began_s = 0, 0.0

    def on_updates(updates: list[Update]) -> None:
        nonlocal steps, began_s
        if len(updates) < num_sequences:
            return
        steps += 1
        if steps == 1:
            clock.spent_s.clear()
            began_s = now()
        elif steps == num_steps + 1:
            clock.spent_s["step"] = now() - began_s
            spent.update({name: 1000 * seconds / num_steps for name, seconds in clock.spent_s.items()})
            done.set()

    engine = Engine(backend, settings.scheduler, settings.paged_kv, on_updates)
    engine.start()
    for owner, method in ((backend, "_decode"), (backend._sampler, "sample"), (backend, "run")):
        clock.wrap(owner, method, method)
    sampling = SamplingParams(temperature=temperature)
    for number in range(num_sequences):
        prompt = tuple(WORDS_FROM + 64 * number + offset for offset in range(64))
        job = Job(request=str(number), choice=0, prompt=prompt, max_tokens=num_steps * 4, sampling=sampling)
        engine.submit([msgspec.structs.replace(job, ignore_eos=True)])
    done.wait()
    engine.close()
    return {
        "step": spent["step"],
        "library": spent["_decode"],
        "sampling": spent["sample"],
        "batch and trim": spent["run"] - spent["_decode"] - spent["sample"],
        "scheduler, text": spent["step"] - spent["run"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    arguments = parser.parse_args()
    now = CLOCKS[arguments.clock]
    table = Table("sequences", "step", "library", "sampling", "batch and trim", "scheduler, text", "ours")
    for num_sequences in arguments.batch:
        spent = profile(arguments.gguf, num_sequences, arguments.steps, arguments.temperature, now)
        ours = 1 - spent["library"] / spent["step"]
        table.add_row(str(num_sequences), *(f"{value:.2f} ms" for value in spent.values()), f"{ours:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
