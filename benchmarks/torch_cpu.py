"""The torch backend on a CPU, the whole path from HTTP to SSE, in turns with llama-server where one is named.

    python benchmarks/torch_cpu.py --model model.gguf [--llama-server build/bin/llama-server --peer-gguf q8_0.gguf]
        [--vllm http://127.0.0.1:8000] [--quantization int8] [--pairs 3] [--only "32 clients"] [--json FILE]

Also how long the worker takes to be ready, and what it keeps in memory beyond weights and KV. --vllm names a server
that runs already and speaks OpenAI's interface.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import psutil
from arrivals import closed_loop
from client import Server, parse_server
from compare import CONTEXT_LENGTH, LOADS, NUM_SLOTS, Load
from ratios import Ratio, paired
from rich.console import Console
from rich.table import Table
from servers import PeerOptions, inferflux, llama_server
from shapes import SHAPES, Conversation
from summary import Summary, summarize

from inferflux.workers.backends.cores import num_physical_cores


class Row(msgspec.Struct, frozen=True):
    """One load: each side's runs, in order, and ours over each peer's output tokens per second."""

    load: Load
    runs: dict[str, list[Summary]]
    ratios: dict[str, Ratio]


class Start(msgspec.Struct, frozen=True):
    """Seconds from the command to a worker that is ready, and the worker's resident memory then and at the end."""

    took_s: float
    resident_bytes: int
    resident_after_bytes: int = 0


def run(server: Server, load: Load, seed: int) -> Summary:
    shape = SHAPES[load.shape]
    conversations = [Conversation(shape, "", seed, number) for number in range(load.num_clients * load.num_waves)]
    done = asyncio.run(closed_loop(server, shape, conversations, load.num_clients))
    if done.errors:
        raise RuntimeError(f"{load.name}, port {server.port}: {done.errors[0]}")
    return summarize(done)


def take_turns(load: Load, servers: dict[str, Server], num_pairs: int, console: Console) -> Row:
    """Each round every server once, in an order that turns around, with prompts that none has seen."""
    for seed, server in enumerate(servers.values()):
        run(server, load, 1000 + seed)
    runs: dict[str, list[Summary]] = {name: [] for name in servers}
    for number in range(num_pairs):
        names = list(servers) if number % 2 == 0 else list(reversed(servers))
        for name in names:
            runs[name].append(run(servers[name], load, number))
        console.print(f"  {load.name}: " + ", ".join(f"{name} {runs[name][-1].tokens_per_s:.1f}" for name in servers))
    ours, *peers = servers
    rates = {name: [each.tokens_per_s for each in own] for name, own in runs.items()}
    return Row(load, runs, {peer: paired(rates[ours], rates[peer]) for peer in peers})


def worker_bytes() -> int:
    """Resident memory of the worker that this process started, some levels down."""
    for process in psutil.Process().children(recursive=True):
        if "inferflux.workers" in process.cmdline():
            return int(process.memory_info().rss)
    raise RuntimeError("no worker runs")


def print_rows(console: Console, rows: Sequence[Row], start: Start) -> None:
    table = Table("load", "side", "tokens/s", "ours / its [95 %]", "TTFT p50", "TTFT p99", "between tokens p50")
    for row in rows:
        for name, own in row.runs.items():
            middle = sorted(own, key=lambda each: each.tokens_per_s)[len(own) // 2]
            table.add_row(
                row.load.name,
                name,
                f"{middle.tokens_per_s:.1f}",
                str(row.ratios.get(name, "")),
                f"{middle.first.p50_ms:.0f} ms",
                f"{middle.first.p99_ms:.0f} ms",
                f"{middle.between.p50_ms:.1f} ms",
            )
    console.print(table)
    console.print(
        f"ready after {start.took_s:.1f} s; resident {start.resident_bytes >> 20} MiB then, "
        f"{start.resident_after_bytes >> 20} MiB at the end"
    )


def main() -> None:
    arguments = _arguments()
    console = Console()
    loads = [load for load in LOADS if not arguments.only or load.name in arguments.only]
    model = {"path": str(arguments.model.resolve()), "id": "model", "backend": "torch"}
    torch_settings = {
        "threads": arguments.threads,
        "context_length": CONTEXT_LENGTH,
        "dtype": arguments.dtype,
        "quantization": arguments.quantization,
    }
    runtime = {"scheduler": {"max_batch_size": NUM_SLOTS}, "torch": torch_settings}
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        began_s = time.monotonic()
        servers = {"torch": running.enter_context(inferflux(folder, model, runtime))}
        start = Start(time.monotonic() - began_s, worker_bytes())
        if arguments.llama_server:
            options = PeerOptions(arguments.peer_slots, arguments.threads)
            binary, gguf = arguments.llama_server.resolve(), arguments.peer_gguf.resolve()
            servers["llama-server"] = running.enter_context(llama_server(folder, binary, gguf, options, CONTEXT_LENGTH))
        if arguments.vllm:
            servers["vLLM"] = parse_server(arguments.vllm, "none")
        rows = [take_turns(load, servers, arguments.pairs, console) for load in loads]
        start = msgspec.structs.replace(start, resident_after_bytes=worker_bytes())
    print_rows(console, rows, start)
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode((start, rows))) + b"\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file or folder with safetensors")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--threads", type=int, default=num_physical_cores())
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--peer-gguf", type=Path)
    parser.add_argument("--peer-slots", type=int, default=NUM_SLOTS)
    parser.add_argument("--vllm", help="base address of a running server")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", action="append", choices=[load.name for load in LOADS], help="may be repeated")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if (arguments.llama_server is None) != (arguments.peer_gguf is None):
        parser.error("--llama-server and --peer-gguf go together")
    return arguments


if __name__ == "__main__":
    main()
