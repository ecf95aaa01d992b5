"""Three NATS nodes with TLS, as deploy/nats/prepare.py and cluster-tls.conf make them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from inferflux.broker.embedded import die_with_parent, find_binary
from inferflux.config import load
from inferflux.config.settings import Settings

from .checkout import ROOT
from .nats import START_S, _listens
from .ports import free_ports

DEPLOY = ROOT / "deploy" / "nats"


class TlsCluster:
    """Nodes n1 to n3 on loopback; `secrets` is the prepared folder."""

    def __init__(self, folder: Path, *, publishers: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.secrets = folder / "secrets"
        ports = free_ports(9)
        self._ports, self._routes, self.monitors = ports[:3], ports[3:6], ports[6:]
        self._nodes: list[subprocess.Popen[bytes]] = []
        command = [sys.executable, str(DEPLOY / "prepare.py"), "--out", str(self.secrets)]
        command += ["--ca-path", str(self.secrets / "ca.pem")]
        for number, port in enumerate(self._ports, 1):
            command += ["--node", f"n{number}=127.0.0.1", "--port", str(port)]
        for publisher in publishers:
            command += ["--publisher", publisher]
        subprocess.run(command, check=True, timeout=60)
        for name in ("cluster.conf", "cluster-tls.conf"):
            shutil.copy(DEPLOY / name, self.secrets)

    def __enter__(self) -> Self:
        for number in (1, 2, 3):
            self._start(number)
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes:
            node.send_signal(signal.SIGKILL)
            node.wait(START_S)

    def environ(self, role: str) -> dict[str, str]:
        """The variables of one role's processes."""
        lines = (self.secrets / f"{role}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def settings(self, role: str) -> Settings:
        """Settings of one role from its variables alone."""
        small = {"tape.max_bytes": str(32 * 1024 * 1024), "broker.timeout_s": "10"}
        return load.load(None, self.environ(role), small).settings

    def _start(self, number: int) -> None:
        routes = [f"nats://127.0.0.1:{port}" for at, port in enumerate(self._routes, 1) if at != number]
        stem = self.secrets / f"n{number}"
        environ = os.environ | {
            "NATS_NAME": f"n{number}",
            "NATS_LISTEN": f"127.0.0.1:{self._ports[number - 1]}",
            "NATS_CLUSTER_LISTEN": f"127.0.0.1:{self._routes[number - 1]}",
            "NATS_MONITOR_LISTEN": f"127.0.0.1:{self.monitors[number - 1]}",
            "NATS_ROUTES": f"[{', '.join(routes)}]",
            "NATS_STORE_DIR": str(self.folder / f"store-{number}"),
            "NATS_TLS_CERT": str(stem.with_suffix(".pem")),
            "NATS_TLS_KEY": str(stem.with_suffix(".key")),
            "NATS_TLS_CA": str(self.secrets / "ca.pem"),
        }
        log = self.folder / f"n{number}.log"
        command = [str(find_binary()), "-c", str(self.secrets / "cluster-tls.conf"), "-l", str(log)]
        node = subprocess.Popen(die_with_parent(command), env=environ, stdin=subprocess.DEVNULL, start_new_session=True)
        self._nodes.append(node)
        deadline_s = time.monotonic() + START_S
        while not _listens(self._ports[number - 1]):
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, f"node {number} does not listen: {log.read_text()}"
            time.sleep(0.01)
