"""Load for any server that speaks OpenAI's interface: closed or open loop, several shapes, percentiles and a plot.

    python benchmarks/load_test.py --url http://127.0.0.1:8080 --key dev-key-123 --shape short --clients 32
    python benchmarks/load_test.py --url ... --shape chat --clients 16 --requests 16
    python benchmarks/load_test.py --url ... --shape shared --rate 2.5 --requests 100 --json out.json --plot out.svg

Without --rate the loop is closed: each client asks again when it has its answer. With --rate conversations begin as
a Poisson process of that many a second. Shapes: short (60 words, 64 tokens out), shared (the same after 250 words that
all have in common), chat (8 turns with history), long (4,000 words); --words, --shared, --tokens, --turns change them.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec
from arrivals import Run, closed_loop, open_loop
from client import parse_server
from plot import cumulative_plot
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, Conversation, Shape
from summary import Spread, Summary, summarize


def main() -> None:
    arguments = _arguments()
    shape = _shape(arguments)
    try:
        server = parse_server(arguments.url, arguments.key)
    except ValueError as error:
        sys.exit(str(error))
    num_conversations = arguments.requests or 4 * arguments.clients
    conversations = (
        Conversation(shape, arguments.model, arguments.seed, number) for number in range(num_conversations)
    )
    if arguments.rate:
        load = open_loop(server, shape, conversations, arguments.rate, arguments.seed)
    else:
        load = closed_loop(server, shape, conversations, arguments.clients)
    run = asyncio.run(load)
    try:
        summary = summarize(run)
    except ValueError as error:
        sys.exit(str(error))
    print_summary(Console(), summary, run)
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
    if arguments.plot:
        arguments.plot.write_text(_plot(run))
    sys.exit(1 if run.errors else 0)


def print_summary(console: Console, summary: Summary, run: Run) -> None:
    console.print(
        f"{summary.num_answers} answers, {summary.num_tokens} tokens in {summary.took_s:.1f} s: "
        f"{summary.tokens_per_s:.1f} tokens/s, {summary.num_errors} errors"
    )
    table = Table("milliseconds", "mean", "p50", "p90", "p99")
    rows = {"time to first token": summary.first, "between tokens": summary.between, "whole answer": summary.whole}
    if len(summary.first_by_turn) > 1:
        rows |= {f"first token, turn {turn}": each for turn, each in enumerate(summary.first_by_turn, 1)}
    for name, each in rows.items():
        table.add_row(name, *_cells(each))
    console.print(table)
    for error in sorted(set(run.errors)):
        console.print(f"error: {error}", style="red", markup=False)


def _cells(each: Spread) -> list[str]:
    return [f"{value:,.1f}" for value in (each.mean_ms, each.p50_ms, each.p90_ms, each.p99_ms)]


def _plot(run: Run) -> str:
    return cumulative_plot(
        "Share of tokens that came within",
        "milliseconds",
        {
            "first token": [answer.first_s * 1000 for answer in run.answers],
            "between tokens": [gap_s * 1000 for answer in run.answers for gap_s in answer.gaps_s],
        },
    )


def _shape(arguments: argparse.Namespace) -> Shape:
    changes = {
        "num_words": arguments.words,
        "num_shared": arguments.shared,
        "num_tokens": arguments.tokens,
        "num_turns": arguments.turns,
    }
    changed = {name: value for name, value in changes.items() if value is not None}
    return msgspec.structs.replace(SHAPES[arguments.shape], **changed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", required=True, help="where the server listens, with or without /v1")
    parser.add_argument("--key", default="", help="API key")
    parser.add_argument("--model", default="", help="model id to ask for; the server's default if absent")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="short")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.0, help="conversations a second; makes the loop open")
    parser.add_argument("--requests", type=int, default=0, help="conversations in all; four for each client if absent")
    parser.add_argument("--words", type=int)
    parser.add_argument("--shared", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--turns", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
