"""A batch against clients, and clients beside a batch.

    python benchmarks/batch.py [--pairs 5] [--lines 500] [--tokens 64] [--json FILE]

One `inferctl serve` with the stub engine (16 slots, 20 ms a step). A pair is the same requests twice: as a batch, from
`POST /v1/batches` until it is completed, and by 32 clients that each wait for an answer before they ask again. After
the pairs one client streams alone, then while a batch runs: how long it waits for its first token.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvloop
from client import Server
from load import Target, closed_loop
from ratios import Ratio, paired
from rich.console import Console
from servers import inferflux

PATH = "/v1/chat/completions"
NUM_SLOTS = 16
STEP_S = 0.02
NUM_CLIENTS = 32


class Throughput(msgspec.Struct, frozen=True):
    """Requests per second, medians, and the ratio of batch to clients."""

    batch_per_s: float
    clients_per_s: float
    ratio: Ratio


class Beside(msgspec.Struct, frozen=True):
    """Seconds to the first token, alone and beside a batch; `release_s` is how often a slot comes free."""

    alone_p50_s: float
    alone_p99_s: float
    beside_p50_s: float
    beside_p99_s: float
    release_s: float

    @property
    def num_releases(self) -> float:
        return (self.beside_p99_s - self.alone_p99_s) / self.release_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=150, help="of the client beside the batch")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console()
    runtime = {"scheduler": {"max_batch_size": NUM_SLOTS}, "stub": {"step_s": STEP_S}}
    with (
        tempfile.TemporaryDirectory() as folder,
        inferflux(Path(folder), {"id": "stub", "backend": "stub"}, runtime) as server,
    ):
        bodies = [_body(number, arguments.tokens) for number in range(arguments.lines)]
        throughput = _compare(server, bodies, arguments.pairs, console)
        beside = _beside(server, bodies, arguments.requests, arguments.tokens)
    console.print(f"batch {throughput.batch_per_s:.1f}/s, clients {throughput.clients_per_s:.1f}/s: {throughput.ratio}")
    alone = f"alone p50 {beside.alone_p50_s * 1000:.0f} ms, p99 {beside.alone_p99_s * 1000:.0f} ms"
    with_batch = f"beside a batch {beside.beside_p50_s * 1000:.0f} ms, {beside.beside_p99_s * 1000:.0f} ms"
    console.print(f"first token {alone}; {with_batch}: {beside.num_releases:.2f} slot releases")
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode((throughput, beside))))


def _body(number: int, num_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Request {number}: " + "word " * 30}]
    return {"model": "stub", "messages": messages, "max_tokens": num_tokens, "ignore_eos": True}


def _compare(server: Server, bodies: Sequence[dict[str, Any]], num_pairs: int, console: Console) -> Throughput:
    batches: list[float] = []
    clients: list[float] = []
    for number in range(num_pairs + 1):
        batch_s = _finished(server, _submitted(server, bodies))
        clients_s = _asked(server, bodies, NUM_CLIENTS)
        if number:  # the first round warms up
            batches.append(len(bodies) / batch_s)
            clients.append(len(bodies) / clients_s)
            console.print(f"pair {number}: {batches[-1]:.1f} / {clients[-1]:.1f} requests/s")
    return Throughput(_median(batches), _median(clients), paired(batches, clients))


def _beside(server: Server, bodies: Sequence[dict[str, Any]], num_requests: int, num_tokens: int) -> Beside:
    asked = [_body(number, 8) for number in range(num_requests)]
    alone = _first_s(server, asked)
    ident = _submitted(server, list(bodies) * 4)
    while _batch(server, ident)["request_counts"]["completed"] < NUM_SLOTS:
        time.sleep(0.1)
    beside = _first_s(server, asked)
    if _batch(server, ident)["status"] != "in_progress":
        raise RuntimeError("the batch ended too early: give it more lines")
    _client(server).post(f"/v1/batches/{ident}/cancel")
    return Beside(alone[0], alone[1], beside[0], beside[1], num_tokens * STEP_S / NUM_SLOTS)


def _first_s(server: Server, bodies: Sequence[dict[str, Any]]) -> tuple[float, float]:
    streamed = [msgspec.json.encode(body | {"stream": True}) for body in bodies]
    result = uvloop.run(closed_loop(_target(server), streamed, num_clients=1, num_extra_events=1, pause_s=0.05))
    return result.first_s(0.5), result.first_s(0.99)


def _asked(server: Server, bodies: Sequence[dict[str, Any]], num_clients: int) -> float:
    streamed = [msgspec.json.encode(body | {"stream": True}) for body in bodies]
    result = uvloop.run(closed_loop(_target(server), streamed, num_clients=num_clients, num_extra_events=1))
    return float(result.took_s)


def _submitted(server: Server, bodies: Sequence[dict[str, Any]]) -> str:
    lines = (
        {"custom_id": str(number), "method": "POST", "url": PATH, "body": body} for number, body in enumerate(bodies)
    )
    content = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    with _client(server) as client:
        file = client.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}).json()
        body = {"input_file_id": file["id"], "endpoint": PATH, "completion_window": "24h"}
        return str(client.post("/v1/batches", json=body).json()["id"])


def _finished(server: Server, ident: str) -> float:
    """Seconds from now until the batch is completed."""
    started_s = time.perf_counter()
    while (batch := _batch(server, ident))["status"] != "completed":
        if batch["status"] in ("failed", "expired", "cancelled"):
            raise RuntimeError(f"the batch ended as {batch['status']}")
        time.sleep(0.1)
    return time.perf_counter() - started_s


def _batch(server: Server, ident: str) -> dict[str, Any]:
    with _client(server) as client:
        return dict(client.get(f"/v1/batches/{ident}").json())


def _client(server: Server) -> httpx.Client:
    url = f"http://{server.host}:{server.port}"
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {server.key}"}, timeout=60)


def _target(server: Server) -> Target:
    return Target(server.host, server.port, PATH, server.key)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
