"""A NATS server whose store lies on a small disk of its own, which a test can fill and clear."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from inferflux.broker.embedded import die_with_parent
from inferflux.config.settings import Settings

from .nats import NatsServers

DISK_MB = 128


class SmallDiskNats(NatsServers):
    """The store is a tmpfs in a mount namespace that one process keeps, so nothing stays mounted when that ends."""

    def __init__(self, path: Path, settings: Settings) -> None:
        super().__init__(path, settings)
        self._store = path / "node-0"
        self._store.mkdir(parents=True)
        mount = f'mount -t tmpfs -o size={DISK_MB}m tmpfs "$0" && echo mounted && exec sleep infinity'
        command = die_with_parent([_path("unshare"), "--mount", "sh", "-c", mount, str(self._store)])
        self._keeper = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"mounted\n"

    def _command(self, log: Path) -> list[str]:
        return [_path("nsenter"), "-t", str(self._keeper.pid), "--mount", *super()._command(log)]

    def fill(self) -> None:
        """Take every byte that is left."""
        with self._ballast.open("wb", buffering=0) as ballast:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        ballast.write(b"\0" * size)

    def clear(self) -> None:
        self._ballast.unlink()

    def close(self) -> None:
        super().close()
        self._keeper.kill()
        self._keeper.communicate()

    @property
    def _ballast(self) -> Path:
        # The disk as the server sees it.
        return Path(f"/proc/{self._keeper.pid}/root{self._store}/ballast")


def _path(program: str) -> str:
    return shutil.which(program) or program


def can_mount() -> bool:
    """Whether this process may make a disk: on Linux, as root, outside of strict sandboxes."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0
