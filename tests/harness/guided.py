"""An InferFlux that was started as the guides say, with everything switched on that they name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from .checkout import ROOT
from .http import Answer, Asked, HttpServer
from .issuer import AUDIENCE, Issuer
from .ports import free_port

KEY = "dev-key-123"
RATE = 100_000
PAGES = 512
TERM = "forbidden-fruit"
DENIED = "the policy says no"
PASSPHRASE = "correct horse battery staple"
START_S = 180.0


class Guided:
    """One server, its folder, which is also its user's home, and the issuer that it trusts."""

    def __init__(self, folder: Path, issuer: Issuer, opa_url: str) -> None:
        self.folder = folder
        self.issuer = issuer
        self.opa_endpoint = f"{opa_url}/v1/data/inferflux/allow"
        self.port, self.broker_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.registry = folder / "registry.yaml"
        self.audit_log = folder / "audit.log"
        self.log = folder / "serve.log"
        self.checkout = _checkout(folder)

    @property
    def environ(self) -> dict[str, str]:
        """What the user's shell has exported."""
        own = ("INFERFLUX_", "INFERCTL_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        return inherited | {
            "HOME": str(self.folder),
            "PATH": f"{self.checkout / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "INFERCTL_URL": self.url,
            "INFERCTL_API_KEY": KEY,
            "INFERFLUX_MODEL_PATH": str(self.folder / "models" / "llama3.gguf"),
            "INFERFLUX_POLICY_PASSPHRASE": PASSPHRASE,
        }

    def run(self, command: str, *arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """A command as the guides spell it, and more arguments."""
        return subprocess.run(
            ["bash", "-c", f'{command} "$@"', "bash", *arguments],
            cwd=self.checkout,
            env=self.environ | environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def call(self, method: str, path: str, body: Any = None, *, key: str = KEY) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.request(method, self.url + path, json=body, headers=headers, timeout=120)

    def streaming(self, path: str, body: dict[str, Any]) -> AbstractContextManager[httpx.Response]:
        """A stream, which is broken off where the block ends."""
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.stream("POST", self.url + path, json=body | {"stream": True}, headers=headers, timeout=120)

    def metrics(self, name: str) -> list[str]:
        """The samples of one metric, labels and value."""
        lines = self.call("GET", "/metrics").text.splitlines()
        return [line.removeprefix(name) for line in lines if line.startswith((f"{name}{{", f"{name} "))]

    def models(self) -> dict[str, Any]:
        """What operators see of each model."""
        data = self.call("GET", "/v1/admin/models").json()["data"]
        return {model["id"]: model for model in data}

    def write_registry(self, *models: dict[str, Any]) -> None:
        beside = self.registry.with_suffix(".new")
        beside.write_text(yaml.safe_dump({"models": list(models)}))
        beside.replace(self.registry)

    @contextmanager
    def running(self) -> Iterator[None]:
        """`./scripts/run_dev.sh --config config/server.yaml`, with ports and files of its own."""
        settings = {
            "server.port": self.port,
            "broker.port": self.broker_port,
            "broker.store_dir": self.folder / "nats",
            "registry.path": self.registry,
            "logging.audit_log": self.audit_log,
            "auth.rate_limit_per_minute": RATE,
            "auth.oidc_issuer": self.issuer.url,
            "auth.oidc_audience": AUDIENCE,
            "guardrails.blocklist": TERM,
            "guardrails.opa_endpoint": self.opa_endpoint,
            "runtime.paged_kv.cpu_pages": PAGES,
            "queue.no_backend_grace_s": 3.0,
        }
        flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        command = ["./scripts/run_dev.sh", "--config", "config/server.yaml", *flags]
        with self.log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.checkout, env=self.environ, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        try:
            self._wait_ready(process)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=90)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        """`inferctl status` is what a user would try; this asks what it asks until a worker is ready."""
        from .server import Server

        def ready() -> bool:
            notes = httpx.get(f"{self.url}/readyz", timeout=5).json()["notes"]
            return bool(notes["worker_ready"])

        Server(self.folder, [process], [self.url], self.log).wait_until("ready", ready, START_S)

    def wait_until(self, what: str, condition: Any) -> None:
        from .server import Server

        Server(self.folder, [], [self.url], self.log).wait_until(what, condition)


def _checkout(folder: Path) -> Path:
    """A checkout whose environment is the one that runs the tests, and whose set-up leaves that as it is."""
    checkout = folder / "checkout"
    checkout.mkdir()
    (checkout / ".venv").symlink_to(sys.prefix)
    (checkout / "build").mkdir()
    (checkout / "build" / "inferctl").symlink_to("../.venv/bin/inferctl")
    (checkout / "config").symlink_to(ROOT / "config")
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    (checkout / "scripts" / "setup.sh").write_text("#!/bin/sh\n")
    return checkout


def _decide(asked: Asked) -> Answer:
    """As OPA's data API answers for a rule that is a yes or a no."""
    return Answer(body={"result": DENIED.encode() not in asked.body})


@contextmanager
def guided(folder: Path) -> Iterator[Guided]:
    """Serve until the block ends."""
    with Issuer().running() as issuer, HttpServer(_decide).running() as opa:
        server = Guided(folder, issuer, opa.url)
        server.write_registry({"id": "first", "backend": "stub"})
        with server.running():
            yield server


def lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
