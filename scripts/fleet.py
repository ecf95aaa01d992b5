"""A fleet on one machine as compose.yaml would start it; see run_fleet.sh."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil
import yaml

from inferflux.broker.embedded import die_with_parent, find_binary

ROOT = Path(__file__).resolve().parents[1]
NATS = ROOT / "deploy" / "nats"
NODES = ("nats-1", "nats-2", "nats-3")
KEY = "dev-key-123"
START_S = 180.0


class Unavailable(Exception):
    """Something that it takes is not there; the message says what."""


class LocalFleet:
    """Three nodes, two replicas, nginx, two workers; a process for each, with its log in `folder`."""

    def __init__(
        self, folder: Path, settings: Sequence[str] = (), take_ports: Callable[[int], list[int]] | None = None
    ) -> None:
        nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if nginx is None:
            raise Unavailable("nginx is not installed; Debian: apt-get install nginx-light")
        self.folder = folder
        self._nginx = nginx
        self._settings = [part for each in settings or ("model.id=smollm2",) for part in ("--set", each)]
        ports = (take_ports or free_ports)(14)
        self._clients, self._routes, self._monitors = ports[:3], ports[3:6], ports[6:9]
        self.api_ports, self._proxy, self.probe_ports = ports[9:11], ports[11], ports[12:14]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """Where clients call: the proxy."""
        return f"http://127.0.0.1:{self._proxy}"

    def __enter__(self) -> Self:
        try:
            self._prepare()
            for number in range(len(NODES)):
                self.start_node(number)
            for number in range(2):
                self.start_api(number)
            for port in self.api_ports:
                self.until_ready(f"http://127.0.0.1:{port}/readyz")
            self._start_proxy()
            for number in range(2):
                self.start_worker(number)
            for port in self.probe_ports:
                self.until_ready(f"http://127.0.0.1:{port}/readyz")
            self.until_ready(f"{self.url}/readyz")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Workers and replicas drain, then NATS goes."""
        for kind in ("worker", "api", "proxy", "nats"):
            members = [self.processes.pop(name) for name in list(self.processes) if name.startswith(kind)]
            for member in members:
                member.terminate()
            for member in members:
                try:
                    member.wait(60)
                except subprocess.TimeoutExpired:
                    member.kill()
                    member.wait()

    def kill(self, name: str) -> None:
        """As if its machine had died: with every process that it started."""
        process = self.processes.pop(name)
        # The supervisor first: it would start what it lost.
        doomed = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in doomed:
            each.kill()
        process.wait()
        psutil.wait_procs(doomed, timeout=10)

    def start_node(self, number: int) -> None:
        others = [f"nats://127.0.0.1:{port}" for at, port in enumerate(self._routes) if at != number]
        stem = self.folder / "secrets" / NODES[number]
        environ = {
            "NATS_NAME": NODES[number],
            "NATS_LISTEN": f"127.0.0.1:{self._clients[number]}",
            "NATS_CLUSTER_LISTEN": f"127.0.0.1:{self._routes[number]}",
            "NATS_MONITOR_LISTEN": f"127.0.0.1:{self._monitors[number]}",
            "NATS_ROUTES": f"[{', '.join(others)}]",
            "NATS_STORE_DIR": str(self.folder / NODES[number]),
            "NATS_TLS_CERT": f"{stem}.pem",
            "NATS_TLS_KEY": f"{stem}.key",
            "NATS_TLS_CA": str(self.folder / "secrets" / "ca.pem"),
        }
        self._start(NODES[number], [str(find_binary()), "-c", str(self.folder / "secrets/cluster-tls.conf")], environ)

    def start_api(self, number: int) -> None:
        port = {"INFERFLUX_SERVER_PORT": str(self.api_ports[number])}
        self._start(f"api-{number + 1}", self._inferctl("api"), self._environ("api") | port)

    def start_worker(self, number: int) -> None:
        port = {"INFERFLUX_WORKER_METRICS_PORT": str(self.probe_ports[number])}
        self._start(f"worker-{number + 1}", self._inferctl("worker"), self._environ("worker") | port)

    def _prepare(self) -> None:
        command = [sys.executable, str(NATS / "prepare.py"), "--out", str(self.folder / "secrets")]
        command += ["--ca-path", str(self.folder / "secrets" / "ca.pem")]
        for node, port in zip(NODES, self._clients, strict=True):
            command += ["--node", f"{node}=127.0.0.1", "--port", str(port)]
        subprocess.run(command, check=True)
        for name in ("cluster.conf", "cluster-tls.conf"):
            shutil.copy(NATS / name, self.folder / "secrets")
        settings = yaml.safe_load((ROOT / "deploy" / "compose" / "server.yaml").read_text())
        settings["registry"]["path"] = str(ROOT / "config" / "registry.yaml")
        (self.folder / "server.yaml").write_text(yaml.safe_dump(settings))

    def _start_proxy(self) -> None:
        site = (
            (ROOT / "deploy" / "compose" / "nginx.conf").read_text().replace("listen 8080;", f"listen {self._proxy};")
        )
        for number, port in enumerate(self.api_ports, 1):
            site = site.replace(f"api-{number}:8080", f"127.0.0.1:{port}")
        temporary = "".join(
            f"  {kind}_temp_path {self.folder}/nginx-{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        whole = (
            f"daemon off;\npid {self.folder}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
            f"http {{\n  access_log off;\n{temporary}{site}}}\n"
        )
        (self.folder / "nginx.conf").write_text(whole)
        command = [self._nginx, "-e", "stderr", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]
        self._start("proxy", command, {})

    def _inferctl(self, role: str) -> list[str]:
        config = ["--config", str(self.folder / "server.yaml")]
        return [sys.executable, "-m", "inferflux.cli.main", role, *config, *self._settings]

    def _environ(self, role: str) -> dict[str, str]:
        lines = (self.folder / "secrets" / f"{role}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def _start(self, name: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                die_with_parent(list(command)),
                env=os.environ | environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )

    def until_ready(self, url: str) -> None:
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5):  # noqa: S310
                    return
            except OSError as error:
                reason = str(error)
            for name, process in self.processes.items():
                if process.poll() is not None:
                    log = (self.folder / f"{name}.log").read_text(errors="replace")
                    raise Unavailable(f"{name} ended with status {process.returncode}: {log[-2000:]}")
            if time.monotonic() > deadline_s:
                raise Unavailable(f"{url} is not ready after {START_S:.0f} s: {reason}; logs are in {self.folder}")
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def main() -> int:
    """Start, say where, wait for Ctrl-C; with --chaos run the tests and stop."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--chaos", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    if arguments.chaos:
        return subprocess.run([sys.executable, "-m", "pytest", "tests/deploy/test_fleet.py"], cwd=ROOT).returncode
    folder: Path = arguments.folder or Path(tempfile.mkdtemp(prefix="inferflux-fleet-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        with LocalFleet(folder.resolve(), arguments.set) as fleet:
            print(f"API (nginx): {fleet.url}   key: {KEY}   logs: {folder}", file=sys.stderr)
            while True:
                signal.pause()
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
