"""Which rank of a worker this process is: ranks share a model, and are one worker to the fleet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from inferflux.broker.errors import ConfigError

RANK, WORLD_SIZE = "INFERFLUX_DIST_RANK", "INFERFLUX_DIST_WORLD_SIZE"
BACKEND, ADDRESS = "INFERFLUX_DIST_BACKEND", "INFERFLUX_DIST_ADDRESS"


class Ranks(msgspec.Struct, frozen=True, kw_only=True):
    """`rank` None means that nobody started the others: rank 0 does, on this machine. `stub` has no others."""

    world_size: int
    rank: int | None = None
    backend: Literal["stub", "gloo", "nccl"] = "gloo"
    address: str | None = None

    @property
    def follows(self) -> bool:
        """Whether this process only computes along: it neither pulls nor streams."""
        return bool(self.rank)


def read_ranks(environ: Mapping[str, str]) -> Ranks | None:
    """What INFERFLUX_DIST_* say; None when there is one rank. Raises ConfigError naming the variable and the fix."""
    world_size = _number(environ, WORLD_SIZE)
    rank, address = _number(environ, RANK), environ.get(ADDRESS)
    backend = environ.get(BACKEND) or "gloo"
    if backend not in ("stub", "gloo", "nccl"):
        raise ConfigError(f"{BACKEND}: {backend!r} is not known; use stub, gloo or nccl")
    if rank is not None and rank >= (world_size or 1):
        raise ConfigError(f"{RANK}: {rank} is too large for {WORLD_SIZE} {world_size or 1}; ranks count from 0")
    if world_size in (None, 0, 1):
        return None
    if rank is not None and address is None and backend != "stub":
        raise ConfigError(f"{ADDRESS}: every rank that is started by hand needs rank 0's address, host:port")
    if rank and backend == "stub":
        raise ConfigError(f"{BACKEND}: with stub, rank 0 computes alone; start no rank {rank}")
    assert world_size is not None
    return Ranks(world_size=world_size, rank=rank, backend=backend, address=address)  # type: ignore[arg-type]


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{name}: {text!r} is not a whole number")
    return int(text)
