"""The queue path against a bare Litestar stream: what durability, fairness and fences cost on the way of a token.

    python benchmarks/relay.py [--pairs 9] [--tokens 64] [--json FILE]

Ours is `inferctl serve` with the stub backend at zero seconds a step and everything on: authentication, stamp, queue
with synchronous writes, claim, sealed frames, tape, fenced end. Theirs is benchmarks/bare.py: a generator behind a
Litestar `Stream`. Both send one SSE event for each token. One pair is ours, then theirs, at one load.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import msgspec
import uvloop
from client import Server
from load import LoadResult, Target, closed_loop
from ratios import Ratio, paired
from rich.console import Console
from rich.table import Table
from servers import bare_stream, inferflux
from stages import Stages, measure_stages

PATH = "/v1/chat/completions"


class Load(msgspec.Struct, frozen=True):
    """How many clients, how many requests they send in all, and how long each client thinks in between."""

    num_clients: int
    num_requests: int
    pause_s: float = 0.0


class Comparison(msgspec.Struct, frozen=True):
    """One load: tokens per second of both (medians), their ratio, and time to first token p50 in milliseconds."""

    num_clients: int
    ours_tokens_per_s: float
    bare_tokens_per_s: float
    ratio: Ratio
    ours_first_ms: float
    bare_first_ms: float


LOADS = (Load(1, 100), Load(32, 640))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        model, runtime = (
            {"id": "stub", "backend": "stub"},
            {"scheduler": {"max_batch_size": 32}, "stub": {"step_s": 0.0}},
        )
        ours = _target(running.enter_context(inferflux(Path(folder), model, runtime)))
        bare = _target(running.enter_context(bare_stream(Path(folder))))
        comparisons = [_compare(ours, bare, load, arguments.pairs, arguments.tokens, console) for load in LOADS]
        stages = uvloop.run(measure_stages(Path(folder) / "nats"))
    _print(console, comparisons, stages)
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode((comparisons, stages))))


def _compare(ours: Target, bare: Target, load: Load, num_pairs: int, num_tokens: int, console: Console) -> Comparison:
    body = msgspec.json.encode(
        {
            "model": "stub",
            "messages": [{"role": "user", "content": "word " * 60}],
            "max_tokens": num_tokens,
            "stream": True,
            "ignore_eos": True,
        }
    )
    bodies = [body] * load.num_requests
    mine: list[LoadResult] = []
    theirs: list[LoadResult] = []
    # Ours opens a stream with an event for the role; the bare server does not.
    sides = ((ours, 1, mine), (bare, 0, theirs))
    for number in range(num_pairs + 1):
        for target, num_extra, results in sides:
            result = uvloop.run(
                closed_loop(
                    target, bodies, num_clients=load.num_clients, num_extra_events=num_extra, pause_s=load.pause_s
                )
            )
            expected = load.num_requests * num_tokens
            counted = sum(timing.num_events for timing in result.timings)
            if counted != expected:
                raise RuntimeError(f"{target.port}: {counted} token events instead of {expected}")
            if number:  # the first round warms up
                results.append(result)
        if number:
            rates = f"{mine[-1].events_per_s:,.0f} / {theirs[-1].events_per_s:,.0f}"
            console.print(f"{load.num_clients} clients, pair {number}: {rates} tokens/s")
    return Comparison(
        load.num_clients,
        _median([each.events_per_s for each in mine]),
        _median([each.events_per_s for each in theirs]),
        paired([each.events_per_s for each in mine], [each.events_per_s for each in theirs]),
        _median([each.first_s(0.5) for each in mine]) * 1000,
        _median([each.first_s(0.5) for each in theirs]) * 1000,
    )


def _target(server: Server) -> Target:
    return Target(server.host, server.port, PATH, server.key)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _print(console: Console, comparisons: list[Comparison], stages: Stages) -> None:
    table = Table("clients", "ours tokens/s", "bare tokens/s", "ratio [95 %]", "TTFT p50 ours", "bare", "more")
    for each in comparisons:
        table.add_row(
            str(each.num_clients),
            f"{each.ours_tokens_per_s:,.0f}",
            f"{each.bare_tokens_per_s:,.0f}",
            str(each.ratio),
            f"{each.ours_first_ms:.2f} ms",
            f"{each.bare_first_ms:.2f} ms",
            f"{each.ours_first_ms - each.bare_first_ms:.2f} ms",
        )
    console.print(table)
    table = Table("stage, one at a time", "p50", "p99")
    for stage in stages.stages:
        table.add_row(stage.name, f"{stage.p50_ms:.2f} ms", f"{stage.p99_ms:.2f} ms")
    console.print(table)


if __name__ == "__main__":
    main()
