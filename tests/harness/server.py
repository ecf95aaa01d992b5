"""A whole InferFlux: `inferctl serve` as a user would start it, on free ports, in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import yaml

from inferflux.broker.embedded import die_with_parent
from inferflux.config.settings import TenantSettings

from .ports import free_port

KEY = "test-key-with-every-scope"
READ_KEY = "test-key-that-may-only-read"
TENANT = "acme"
PUBLISHER = "wire"

WAIT_S = 180.0
"""Longer than a busy machine needs for anything that is waited for; a server that died ends the wait."""

GRACE_S = 120.0
"""Until a request ends because no worker has its model: a busy machine takes its time to start one that was killed."""


def tenants() -> tuple[TenantSettings, ...]:
    """One that calls the API with every class, and one that publishes to NATS itself."""
    return (
        TenantSettings(id=TENANT, classes=("priority", "default", "batch")),
        TenantSettings(id=PUBLISHER, classes=("default", "batch"), publish=True),
    )


class Server:
    """A running InferFlux: the commands that were started, and one URL for each API replica."""

    def __init__(self, folder: Path, processes: list[subprocess.Popen[bytes]], urls: list[str], log: Path) -> None:
        self.folder = folder
        self.processes = processes
        self.urls = urls
        self.log = log

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def store_dir(self) -> Path:
        return self.folder / "nats"

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str, *, key: str | None = KEY, replica: int = 0) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.get(self.urls[replica] + path, headers=headers, timeout=60)

    def workers(self) -> list[dict[str, Any]]:
        """The fleet's live workers, as an operator sees them."""
        data = self.get("/v1/admin/workers").json()
        return list(data["data"])

    def worker_pids(self) -> list[int]:
        return [int(beat["pid"]) for beat in self.workers()]

    def holders(self) -> dict[str, int]:
        """The process id of the worker that holds each request which runs, as the log tells it: heartbeats do so once a
        second, and may be from before."""
        pids: dict[str, int] = {}
        held: dict[str, int] = {}
        whole, _, _ = self.log_text().rpartition("\n")
        for line in whole.splitlines():
            if not any(event in line for event in ('"process started"', '"claimed"', '"request ended"')):
                continue
            match json.loads(line):
                case {"event": "process started", "fields": {"process": process, "pid": pid}}:
                    pids[process] = pid
                case {"event": "claimed", "process": process, "fields": {"request": request}}:
                    held[request] = pids[process]
                case {"process": process, "fields": {"request": request}} if held.get(request) == pids.get(process):
                    held.pop(request, None)
        return held

    def num_claims(self, request: str) -> int:
        """How often workers have claimed a request, as far as the log has it."""
        return sum('"claimed"' in line and request in line for line in self.log_text().splitlines())

    def wait_until(self, what: str, condition: Any, timeout_s: float = WAIT_S) -> None:
        """Poll until the condition holds; a dead server or the time limit fail with the log."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for process in self.processes:
                if process.poll() is not None:
                    raise AssertionError(f"{process.args} exited with {process.returncode}:\n{self.log_text()}")
            try:
                if condition():
                    return
            except (httpx.HTTPError, KeyError, json.JSONDecodeError):
                pass
            time.sleep(0.05)
        raise AssertionError(f"not in {timeout_s} s: {what}\n{self.log_text()[-8000:]}")

    def wait_ready(self, num_workers: int) -> None:
        """Every replica accepts requests, so many workers serve, and none is told of that has been killed: its entry
        stays for a while."""

        def ready() -> bool:
            if any(httpx.get(url + "/readyz", timeout=5).status_code != 200 for url in self.urls):
                return False
            beats = self.workers()
            if not all(psutil.pid_exists(beat["pid"]) for beat in beats):
                return False
            models = [model["state"] for beat in beats for model in beat["models"]]
            num_serving = sum(not beat["draining"] for beat in beats)
            return num_serving >= num_workers and all(state == "ready" for state in models)

        self.wait_until("ready", ready)

    def children(self) -> list[psutil.Process]:
        """Every process that the commands started."""
        return [child for process in self.processes for child in psutil.Process(process.pid).children(recursive=True)]

    def stop(self) -> list[int]:
        """Ctrl-C, as a user would; kills what does not stop. Returns the exit codes."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self.processes:
            try:
                process.wait(timeout=90)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)
        return [int(process.returncode) for process in self.processes]


@contextmanager
def running_server(
    folder: Path,
    *,
    model: Path | None = None,
    num_replicas: int = 1,
    num_workers: int = 1,
    settings: dict[str, Any] | None = None,
    nats_dir: Path | None = None,
    within: Callable[[Sequence[str]], list[str]] = list,
) -> Iterator[Server]:
    """Serve the given GGUF, or the stub, until the block ends.

    With `nats_dir`, the folder of a NATS that runs already, `inferctl api` and `inferctl worker` join it. `within` may
    put a command before each command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port(num_replicas)
    config = _config(folder, port, model)
    if nats_dir is not None:
        config["broker"]["store_dir"] = str(nats_dir)
    for section, values in (settings or {}).items():
        config[section] = config.get(section, {}) | values if isinstance(values, dict) else values
    path = folder / "server.yaml"
    path.write_text(yaml.safe_dump(config))
    replicas, workers = ["--api-replicas", str(num_replicas)], ["--workers", str(num_workers)]
    commands = [["serve", *replicas, *workers]]
    if nats_dir is not None:
        commands = [["api", *replicas], ["worker", *workers]]
    log = folder / "serve.log"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("INFERFLUX_", "INFERCTL_"))}
    processes = []
    with log.open("wb") as output:
        for command in commands:
            arguments = [sys.executable, "-m", "inferflux.cli.main", *command, "--config", str(path)]
            whole = die_with_parent(within(arguments))
            processes.append(subprocess.Popen(whole, stdout=output, stderr=output, cwd=folder, env=environ))
    server = Server(folder, processes, [f"http://127.0.0.1:{port + each}" for each in range(num_replicas)], log)
    try:
        server.wait_ready(num_workers)
        yield server
    finally:
        server.stop()


def _config(folder: Path, port: int, model: Path | None) -> dict[str, Any]:
    return {
        "server": {"port": port},
        "broker": {"port": free_port(), "store_dir": str(folder / "nats")},
        "auth": {
            "api_keys": [
                {"key": KEY, "tenant": TENANT, "scopes": ["generate", "read", "admin"]},
                {"key": READ_KEY, "tenant": TENANT, "scopes": ["read"]},
            ]
        },
        "tenants": [msgspec.to_builtins(tenant) for tenant in tenants()],
        "registry": {"path": str(folder / "registry.yaml")},
        "model": {"path": str(model)} if model else {"id": "stub", "backend": "stub"},
        "runtime": {"scheduler": {"max_batch_size": 8}},
        "queue": {"lease_s": 3.0, "no_backend_grace_s": GRACE_S},
    }
