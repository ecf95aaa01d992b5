"""Servers under test, each started on a free port with a store of its own and ended with the block."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml
from client import Server

KEY = "benchmark"
START_TIMEOUT_S = 120.0


class PeerOptions(msgspec.Struct, frozen=True):
    """How llama-server is started: -np, -t and -fa."""

    num_slots: int
    num_threads: int
    flash_attention: str = "auto"

    def __str__(self) -> str:
        return f"-np {self.num_slots} -t {self.num_threads} -fa {self.flash_attention}"


@contextmanager
def inferflux(
    folder: Path, model: Mapping[str, Any], runtime: Mapping[str, Any], *, num_workers: int = 1
) -> Iterator[Server]:
    """`inferctl serve` with everything that a user gets: authentication, queue on disk, claim, tape, SSE."""
    port = _free_port()
    settings = {
        "server": {"port": port},
        "broker": {"port": _free_port(), "store_dir": str(folder / "nats")},
        "auth": {"api_keys": [{"key": KEY, "tenant": "bench", "scopes": ["generate", "read", "admin"]}]},
        "tenants": [{"id": "bench"}],
        "registry": {"path": str(folder / "registry.yaml")},
        "model": dict(model),
        "logging": {"level": "warning"},
        "runtime": dict(runtime),
    }
    path = folder / "server.yaml"
    path.write_text(yaml.safe_dump(settings))
    command = [
        sys.executable,
        "-m",
        "inferflux.cli.main",
        "serve",
        "--config",
        str(path),
        "--workers",
        str(num_workers),
    ]
    with _process(command, folder, "inferflux.log") as process:
        url = f"http://127.0.0.1:{port}/v1/admin/workers"
        _wait_for(process, folder / "inferflux.log", url, lambda answer: answer.count('"ready"') >= num_workers)
        yield Server("127.0.0.1", port, key=KEY)


@contextmanager
def llama_server(folder: Path, binary: Path, gguf: Path, options: PeerOptions, context_length: int) -> Iterator[Server]:
    """The peer; `context_length` tokens for each slot, as ours has."""
    port = _free_port()
    command: list[str] = [str(binary), "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-np", str(options.num_slots), "-t", str(options.num_threads), "-fa", options.flash_attention]
    command += ["-c", str(context_length * options.num_slots), "--no-webui"]
    with _process(command, folder, "llama-server.log") as process:
        _wait_for(process, folder / "llama-server.log", f"http://127.0.0.1:{port}/health", bool)
        yield Server("127.0.0.1", port)


@contextmanager
def bare_stream(folder: Path) -> Iterator[Server]:
    """benchmarks/bare.py: a Litestar stream with nothing behind it."""
    port = _free_port()
    with _process([sys.executable, str(Path(__file__).with_name("bare.py")), str(port)], folder, "bare.log") as process:
        _wait_for(process, folder / "bare.log", f"http://127.0.0.1:{port}/readyz", bool)
        yield Server("127.0.0.1", port)


@contextmanager
def _process(command: Sequence[str], folder: Path, log_name: str) -> Iterator[subprocess.Popen[bytes]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFERFLUX_")}
    with (folder / log_name).open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], log: Path, url: str, good: Callable[[str], bool]) -> None:
    """Raises RuntimeError with the end of its log when the server does not come up."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            response = httpx.get(url, headers={"authorization": f"Bearer {KEY}"})
            if response.status_code == 200 and good(response.text):
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} did not become ready: {log.read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
