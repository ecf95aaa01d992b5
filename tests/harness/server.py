"""A whole InferFlux: `inferctl serve` as a user would start it, on free ports, in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

KEY = "test-key-with-every-scope"
READ_KEY = "test-key-that-may-only-read"
TENANT = "acme"
PUBLISHER = "wire"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def free_ports(number: int) -> int:
    """The first of several free ports in a row."""
    while True:
        first = free_port()
        if first + number < 65536 and all(_free(first + offset) for offset in range(number)):
            return first


def _free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Server:
    """A running `inferctl serve`. `urls` has one entry for each API replica."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], urls: list[str], log: Path) -> None:
        self.folder = folder
        self.process = process
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
        return httpx.get(self.urls[replica] + path, headers=headers, timeout=10)

    def workers(self) -> list[dict[str, Any]]:
        """The fleet's live workers, as an operator sees them."""
        data = self.get("/v1/admin/workers").json()
        return list(data["data"])

    def wait_until(self, what: str, condition: Any, timeout_s: float = 60) -> None:
        """Poll until the condition holds; a dead server or the time limit fail with the log."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self.process.poll() is not None:
                raise AssertionError(f"serve exited with {self.process.returncode}:\n{self.log_text()}")
            try:
                if condition():
                    return
            except (httpx.HTTPError, KeyError, json.JSONDecodeError):
                pass
            time.sleep(0.05)
        raise AssertionError(f"not in {timeout_s} s: {what}\n{self.log_text()[-8000:]}")

    def wait_ready(self, num_workers: int) -> None:
        def ready() -> bool:
            if any(httpx.get(url + "/readyz", timeout=5).status_code != 200 for url in self.urls):
                return False
            beats = self.workers()
            models = [model["state"] for beat in beats for model in beat["models"]]
            return len(beats) >= num_workers and all(state == "ready" for state in models)

        self.wait_until("ready", ready)

    def stop(self) -> int:
        """Ctrl-C, as a user would; kills what does not stop."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=10)
        return int(self.process.returncode)


@contextmanager
def running_server(
    folder: Path,
    *,
    model: Path | None = None,
    num_replicas: int = 1,
    num_workers: int = 1,
    settings: dict[str, Any] | None = None,
) -> Iterator[Server]:
    """Serve the given GGUF, or the stub, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_ports(num_replicas)
    config = _config(folder, port, model)
    for section, values in (settings or {}).items():
        config.setdefault(section, {}).update(values)
    path = folder / "server.yaml"
    path.write_text(yaml.safe_dump(config))
    log = folder / "serve.log"
    command = [sys.executable, "-m", "inferflux.cli.main", "serve", "--config", str(path)]
    command += ["--api-replicas", str(num_replicas), "--workers", str(num_workers)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("INFERFLUX_", "INFERCTL_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, env=environ)
    server = Server(folder, process, [f"http://127.0.0.1:{port + each}" for each in range(num_replicas)], log)
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
        "tenants": [
            {"id": TENANT, "classes": ["priority", "default", "batch"]},
            {"id": PUBLISHER, "classes": ["default"], "publish": True},
        ],
        "registry": {"path": str(folder / "registry.yaml")},
        "model": {"path": str(model)} if model else {"id": "stub", "backend": "stub"},
        "runtime": {"scheduler": {"max_batch_size": 8}},
        "queue": {"lease_s": 3.0},
    }
