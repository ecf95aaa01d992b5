"""InferFlux against llama-server on the same GGUF and threads: the whole path, from HTTP to SSE, in interleaved pairs.

    python benchmarks/compare.py --llama-server build/bin/llama-server --gguf model.gguf [--quick] [--json FILE]

First the peer's slots, flash attention and threads are swept, one after the other, for each load;
--peer-slots, --peer-flash-attention and --peer-threads skip that. Then both servers run side by side and
take turns, each pair in the opposite order of the one before, with prompts that neither has seen. After each pair the
ceiling is measured: prefill of new tokens and decoding by the backend alone. docs/benchmarks.md says how to build the
peer.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import msgspec
from arrivals import Run, closed_loop
from ceiling import Ceiling
from client import Server
from ratios import Ratio, paired
from rich.console import Console
from rich.table import Table
from servers import PeerOptions, inferflux, llama_server
from shapes import SHAPES, Conversation
from summary import Summary, summarize

from inferflux.workers.backends.cores import num_physical_cores

CONTEXT_LENGTH = 2048
NUM_SLOTS = 32
CEILING = Path(__file__).with_name("ceiling.py")


class Load(msgspec.Struct, frozen=True):
    """A row of the table: so many clients, each asking `num_waves` times."""

    name: str
    shape: str
    num_clients: int
    num_waves: int


class Pair(msgspec.Struct, frozen=True):
    """One turn of each side, and the ceiling right after it."""

    ours: Summary
    peer: Summary
    ceiling: Ceiling


class Row(msgspec.Struct, frozen=True):
    """One load: ratios are ours / the peer's; `of_ceiling` is our output tokens per second over the ceiling's."""

    load: Load
    options: PeerOptions
    throughput: Ratio
    first_p50: Ratio
    first_p99: Ratio
    of_ceiling: Ratio
    pairs: tuple[Pair, ...]


LOADS = (
    Load("1 client", "short", 1, 8),
    Load("8 clients", "short", 8, 4),
    Load("32 clients", "short", 32, 2),
    Load("32 clients, shared prefix", "shared", 32, 2),
)


class Comparison:
    """Both servers on one model file."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, console: Console) -> None:
        self._arguments = arguments
        self._folder = folder
        self._console = console
        self._seed = 0

    def row(self, load: Load, ours: Server) -> Row:
        options = self._best_options(load)
        self._console.print(f"{load.name}: llama-server with {options}")
        pairs: list[Pair] = []
        with self._peer(options) as peer:
            self._turn(ours, load)
            self._turn(peer, load)
            for number in range(self._arguments.pairs):
                pairs.append(self._pair(load, ours, peer, ours_first=number % 2 == 0))
                last = pairs[-1]
                self._console.print(
                    f"  pair {number + 1}: {last.ours.tokens_per_s:.1f} / {last.peer.tokens_per_s:.1f} tokens/s, "
                    f"first token {last.ours.first.p50_ms:.0f} / {last.peer.first.p50_ms:.0f} ms, "
                    f"ceiling {last.ceiling.tokens_per_s:.1f}"
                )
        return Row(
            load,
            options,
            paired([pair.ours.tokens_per_s for pair in pairs], [pair.peer.tokens_per_s for pair in pairs]),
            paired([pair.ours.first.p50_ms for pair in pairs], [pair.peer.first.p50_ms for pair in pairs]),
            paired([pair.ours.first.p99_ms for pair in pairs], [pair.peer.first.p99_ms for pair in pairs]),
            paired([pair.ours.tokens_per_s for pair in pairs], [pair.ceiling.tokens_per_s for pair in pairs]),
            tuple(pairs),
        )

    def _pair(self, load: Load, ours: Server, peer: Server, *, ours_first: bool) -> Pair:
        self._seed += 1
        seed = self._seed
        sides = (ours, peer) if ours_first else (peer, ours)
        runs = [self._run(server, load, seed) for server in sides]
        mine, theirs = runs if ours_first else reversed(runs)
        num_prompt = max(answer.num_prompt_tokens for answer in mine.answers)
        return Pair(summarize(mine), summarize(theirs), self._ceiling(load, num_prompt))

    def _turn(self, server: Server, load: Load) -> Summary:
        """One run with prompts of its own, to warm up or to sweep."""
        self._seed += 1
        return summarize(self._run(server, load, self._seed))

    def _run(self, server: Server, load: Load, seed: int) -> Run:
        shape = SHAPES[load.shape]
        conversations = [Conversation(shape, "", seed, number) for number in range(load.num_clients * load.num_waves)]
        run = asyncio.run(closed_loop(server, shape, conversations, load.num_clients))
        if run.errors:
            raise RuntimeError(f"{load.name}, port {server.port}: {run.errors[0]}")
        return run

    def _ceiling(self, load: Load, num_prompt: int) -> Ceiling:
        shape = SHAPES[load.shape]
        num_prefix = num_prompt * shape.num_shared // (shape.num_shared + shape.num_words)
        command = [sys.executable, str(CEILING), str(self._arguments.gguf), "--sequences", str(load.num_clients)]
        command += ["--prefix", str(num_prefix), "--prompt", str(num_prompt - num_prefix)]
        command += ["--tokens", str(shape.num_tokens), "--threads", str(self._arguments.threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return msgspec.json.decode(done.stdout, type=Ceiling)

    def _best_options(self, load: Load) -> PeerOptions:
        """The peer's fastest setting for this load: slots first, then flash attention and threads."""
        arguments = self._arguments
        num_slots = {arguments.peer_slots} if arguments.peer_slots else _slots_to_try(load.num_clients)
        best = PeerOptions(max(num_slots), arguments.peer_threads or arguments.threads)
        best = self._fastest(load, [msgspec.structs.replace(best, num_slots=each) for each in sorted(num_slots)])
        attention = [arguments.peer_flash_attention] if arguments.peer_flash_attention else ["on", "off"]
        best = self._fastest(load, [msgspec.structs.replace(best, flash_attention=each) for each in attention])
        num_threads = {best.num_threads} if arguments.peer_threads else {best.num_threads, arguments.threads * 2}
        return self._fastest(load, [msgspec.structs.replace(best, num_threads=each) for each in sorted(num_threads)])

    def _fastest(self, load: Load, candidates: Sequence[PeerOptions]) -> PeerOptions:
        if len(candidates) == 1:
            return candidates[0]
        rates: dict[PeerOptions, float] = {}
        for options in candidates:
            with self._peer(options) as peer:
                rates[options] = self._turn(peer, load).tokens_per_s
            self._console.print(f"  sweep, {load.name}: {options}: {rates[options]:.1f} tokens/s")
        return max(rates, key=rates.__getitem__)

    def _peer(self, options: PeerOptions) -> AbstractContextManager[Server]:
        return llama_server(self._folder, self._arguments.llama_server, self._arguments.gguf, options, CONTEXT_LENGTH)


def _slots_to_try(num_clients: int) -> set[int]:
    """As many as clients, and fewer: on a CPU the peer may be faster when some requests wait."""
    return {num_clients, max(1, num_clients // 2), max(1, num_clients // 4)}


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    table = Table("load", "peer", "tokens/s ours", "peer's", "ratio [95 %]", "TTFT p50", "TTFT p99", "of the ceiling")
    for row in rows:
        table.add_row(
            row.load.name,
            str(row.options),
            f"{_median([pair.ours.tokens_per_s for pair in row.pairs]):.1f}",
            f"{_median([pair.peer.tokens_per_s for pair in row.pairs]):.1f}",
            str(row.throughput),
            f"{row.first_p50.mean:.2f} [{row.first_p50.low:.2f}, {row.first_p50.high:.2f}]",
            f"{row.first_p99.mean:.2f} [{row.first_p99.low:.2f}, {row.first_p99.high:.2f}]",
            f"{row.of_ceiling.mean:.2f} [{row.of_ceiling.low:.2f}, {row.of_ceiling.high:.2f}]",
        )
    console.print(table)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    arguments = _arguments()
    console = Console()
    loads = [load for load in LOADS if not arguments.only or load.name in arguments.only]
    model = {"path": str(arguments.gguf), "id": "model", "backend": "llamacpp"}
    runtime = {
        "scheduler": {"max_batch_size": NUM_SLOTS},
        "llamacpp": {"threads": arguments.threads, "context_length": CONTEXT_LENGTH},
    }
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        comparison = Comparison(arguments, folder, console)
        ours = running.enter_context(inferflux(folder, model, runtime))
        rows = [comparison.row(load, ours) for load in loads]
    print_rows(console, rows)
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three pairs, and no sweep of attention and threads")
    parser.add_argument("--only", action="append", choices=[load.name for load in LOADS], help="may be repeated")
    parser.add_argument("--threads", type=int, default=num_physical_cores(), help="of both")
    parser.add_argument("--peer-slots", type=int, default=0)
    parser.add_argument("--peer-threads", type=int, default=0)
    parser.add_argument("--peer-flash-attention", choices=["on", "off", "auto"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.llama_server, arguments.gguf = arguments.llama_server.resolve(), arguments.gguf.resolve()
    if arguments.quick:
        arguments.pairs = min(arguments.pairs, 3)
        arguments.peer_threads = arguments.peer_threads or arguments.threads
        arguments.peer_flash_attention = arguments.peer_flash_attention or "auto"
    return arguments


if __name__ == "__main__":
    main()
