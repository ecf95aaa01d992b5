"""A NATS server whose store lies on a small disk of its own, which a test can fill and clear."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from inferflux.broker.embedded import die_with_parent
from inferflux.config.settings import Settings

from .nats import NatsServers

DISK_MB = 128


class SmallDisk:
    """A tmpfs in a mount namespace that one process keeps, so nothing stays mounted when that ends."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True)
        self._path = path
        mount = f'mount -t tmpfs -o size={DISK_MB}m tmpfs "$0" && echo mounted && exec sleep infinity'
        command = die_with_parent([_path("unshare"), "--mount", "sh", "-c", mount, str(path)])
        self._keeper = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"mounted\n"

    def sees(self, command: Sequence[str]) -> list[str]:
        """The command, run where the disk is mounted."""
        return [_path("nsenter"), "-t", str(self._keeper.pid), "--mount", *command]

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
        self._keeper.kill()
        self._keeper.communicate()

    @property
    def _ballast(self) -> Path:
        # The disk as whoever is inside sees it.
        return Path(f"/proc/{self._keeper.pid}/root{self._path}/ballast")


class SmallDiskNats(NatsServers):
    """One node whose store is on a small disk."""

    def __init__(self, path: Path, settings: Settings) -> None:
        super().__init__(path, settings)
        self.disk = SmallDisk(path / "node-0")

    def _command(self, log: Path) -> list[str]:
        return self.disk.sees(super()._command(log))

    def close(self) -> None:
        super().close()
        self.disk.close()


def _path(program: str) -> str:
    return shutil.which(program) or program


def can_mount() -> bool:
    """Whether this process may make a disk: on Linux, as root, outside of strict sandboxes."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0
