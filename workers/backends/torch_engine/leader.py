"""Rank 0: starts the others, tells them what it is about to compute, and notices when one is gone."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from msgspec.structs import replace
from torch._C._distributed_c10d import TCPStore

from inferflux.config.lifeline import SUPERVISED
from inferflux.config.logs import get_logger
from inferflux.config.settings import RuntimeSettings

from ...ranks import ADDRESS, BACKEND, RANK, WORLD_SIZE, Ranks
from ..backend import Capacity, Chunk, Sample, SamplingParams, Tokenizer
from ..cores import num_physical_cores
from .rank_group import Close, Command, Fork, Open, RankGroup, Run, Trim, present
from .torch_backend import TorchBackend

log = get_logger("ranks")

LOOPBACK = "127.0.0.1"
POLL_S = 0.05
WANTED = SamplingParams()


class Leader:
    """One for a process. Ranks that it starts itself end with it: their stdin is a pipe from here."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._group: RankGroup | None = None
        self._lock = threading.Lock()
        self._children: list[subprocess.Popen[bytes]] = []
        self._num_opened = 0
        self.lost = False

    @property
    def num_local(self) -> int:
        """Ranks on this machine, as far as it is known."""
        return self._ranks.world_size if self._ranks.rank is None else 1

    def connect(self) -> RankGroup:
        """Wait for all ranks, the first time. Raises RuntimeError when one cannot come."""
        with self._lock:
            if self._group is None:
                ranks = self._ranks
                host, _, port = (ranks.address or f"{LOOPBACK}:0").rpartition(":")
                store = TCPStore(host, int(port), ranks.world_size, is_master=True, wait_for_workers=False)
                if ranks.rank is None:
                    self._start_others(f"{host}:{store.port}")
                self._wait_for_others(store)
                self._group = RankGroup(0, ranks.world_size, ranks.backend, store)
                log.info("ranks connected", world_size=ranks.world_size, backend=ranks.backend)
            return self._group

    def number(self) -> int:
        """A name for a model that is about to be opened."""
        with self._lock:
            self._num_opened += 1
            return self._num_opened

    @contextmanager
    def together(self, command: Command) -> Iterator[None]:
        """All ranks do `command`: the block is rank 0's part of it. No other command comes in between.

        What fails here leaves the others waiting in the middle of it, so there is no going on: nothing is raised, and
        the caller waits until its process has given its prompts back and ended.
        """
        group = self.connect()
        with self._lock:
            try:
                group.send(command)
                yield
            except Exception as error:
                self._lose(f"{type(error).__name__}: {error}")

    def open(self, command: Open, own: TorchBackend) -> Capacity:
        """Every rank loads the model. When it fails here, no rank can be used any more; the reason is raised."""
        group = self.connect()
        with self._lock:
            try:
                group.send(command)
                return own.start()
            except BaseException:
                self.lost = True
                raise

    def _lose(self, reason: str) -> NoReturn:
        self.lost = True
        log.error("a rank is lost; this worker ends", reason=reason)
        while True:
            threading.Event().wait()

    def _start_others(self, address: str) -> None:
        environ = {
            **os.environ,
            WORLD_SIZE: str(self._ranks.world_size),
            BACKEND: self._ranks.backend,
            ADDRESS: address,
        }
        if sys.platform == "linux":
            environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        for rank in range(1, self._ranks.world_size):
            extra = {RANK: str(rank), SUPERVISED: f"rank-{rank}"}
            command = [sys.executable, "-m", "inferflux.workers.follow"]
            child = subprocess.Popen(command, env=environ | extra, stdin=subprocess.PIPE)
            self._children.append(child)
            threading.Thread(target=self._watch, args=(rank, child), name=f"rank-{rank}", daemon=True).start()

    def _wait_for_others(self, store: TCPStore) -> None:
        """Before anything that nobody could interrupt. Raises RuntimeError when a rank of ours dies instead."""
        missing = [present(rank) for rank in range(1, self._ranks.world_size)]
        while not store.check(missing):
            if self.lost:
                raise RuntimeError("a rank died while it started; its own log says why")
            time.sleep(POLL_S)

    def _watch(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        status = child.wait()
        self.lost = True
        log.error("a rank died; this worker ends", rank=rank, status=status)


class LeadingBackend:
    """The torch backend of rank 0: like any other to the engine, while all ranks compute."""

    name = "torch"

    def __init__(self, path: str, settings: RuntimeSettings, leader: Leader) -> None:
        threads = settings.torch.threads or max(1, num_physical_cores() // leader.num_local)
        self._settings = replace(settings, torch=replace(settings.torch, threads=threads))
        self._path = path
        self._leader = leader
        self._number = leader.number()
        self._own: TorchBackend | None = None

    @property
    def progress(self) -> float:
        return 0.0 if self._own is None else self._own.progress

    @property
    def lost(self) -> bool:
        """Whether a rank is gone, and with it every result."""
        return self._leader.lost

    @property
    def tokenizer(self) -> Tokenizer:
        return self._inner.tokenizer

    def start(self) -> Capacity:
        group = self._leader.connect()
        self._own = TorchBackend(self._path, self._settings, group.shard, group)
        return self._leader.open(Open(self._number, self._path, self._settings), self._own)

    def run(self, batch: Sequence[Chunk]) -> list[Sample]:
        with self._leader.together(Run(self._number, [_shortened(chunk) for chunk in batch])):
            return self._inner.run(batch)

    def fork(self, source: int, target: int, num_tokens: int) -> None:
        with self._leader.together(Fork(self._number, source, target, num_tokens)):
            self._inner.fork(source, target, num_tokens)

    def trim(self, slot: int, num_tokens: int) -> None:
        with self._leader.together(Trim(self._number, slot, num_tokens)):
            self._inner.trim(slot, num_tokens)

    def save(self, slot: int, num_tokens: int) -> bytes:
        """Nothing: one rank's pages are not the whole."""
        return b""

    def load(self, slot: int, data: bytes, num_tokens: int) -> bool:
        self.trim(slot, 0)
        return False

    def num_computed(self, slot: int) -> int:
        return self._inner.num_computed(slot)

    def close(self) -> None:
        if self._own is not None and not self._leader.lost:
            with self._leader.together(Close(self._number)):
                self._own.close()

    @property
    def _inner(self) -> TorchBackend:
        assert self._own is not None
        return self._own


def _shortened(chunk: Chunk) -> Chunk:
    """What another rank needs of a chunk: it does not draw."""
    return replace(
        chunk,
        tokens=list(chunk.tokens),
        block_table=list(chunk.block_table),
        history=(),
        sampling=None if chunk.sampling is None else WANTED,
    )


@functools.cache
def leader_for(ranks: Ranks) -> Leader:
    """The process's one leader."""
    return Leader(ranks)
