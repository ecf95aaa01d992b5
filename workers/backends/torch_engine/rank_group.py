"""The ranks of one worker, connected: commands from rank 0, and sums of what all have computed."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from inferflux.config.settings import RuntimeSettings

from ..backend import Chunk
from .shard import Shard

Agreed = TypeVar("Agreed", bound=msgspec.Struct)

# A rank without work waits in a collective: only death ends that, which closes its connections.
NEVER = timedelta(days=365)


def present(rank: int) -> str:
    """The key under which a rank says in the store that it is there."""
    return f"present/{rank}"


class Open(msgspec.Struct, frozen=True, tag=True):
    """Load a model; `number` names it from now on."""

    number: int
    path: str
    settings: RuntimeSettings


class Run(msgspec.Struct, frozen=True, tag=True):
    """Compute a batch."""

    number: int
    batch: list[Chunk]


class Fork(msgspec.Struct, frozen=True, tag=True):
    """Copy the beginning of a slot to another."""

    number: int
    source: int
    target: int
    num_tokens: int


class Trim(msgspec.Struct, frozen=True, tag=True):
    """Forget what a slot holds beyond its first tokens."""

    number: int
    slot: int
    num_tokens: int


class Close(msgspec.Struct, frozen=True, tag=True):
    """Unload a model."""

    number: int


Command = Open | Run | Fork | Trim | Close
_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Command)


class RankGroup:
    """Joins the group when it is made, and waits for all ranks. What goes wrong later is a RuntimeError of torch's."""

    def __init__(self, rank: int, world_size: int, backend: str, store: TCPStore) -> None:
        self.shard = Shard(rank=rank, world_size=world_size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=NEVER)
        self._control = dist.new_group(backend="gloo", timeout=NEVER)

    def send(self, command: Command) -> None:
        """From rank 0 to all others."""
        self._broadcast(_encoder.encode(command))

    def receive(self) -> Command:
        """What rank 0 sends next."""
        command: Command = _decoder.decode(self._broadcast(None))
        return command

    def add(self, rows: Tensor) -> Tensor:
        dist.all_reduce(rows)
        return rows

    def join(self, columns: Tensor) -> Tensor:
        """Shares may differ by one column: the smaller ones are padded for the journey."""
        world_size = self.shard.world_size
        widths = torch.zeros(world_size, dtype=torch.int64)
        widths[self.shard.rank] = columns.shape[1]
        dist.all_reduce(widths, group=self._control)
        padded = columns.new_zeros((columns.shape[0], int(widths.max())))
        padded[:, : columns.shape[1]] = columns
        gathered = [torch.empty_like(padded) for _ in range(world_size)]
        dist.all_gather(gathered, padded)
        return torch.cat([each[:, :width] for each, width in zip(gathered, widths.tolist(), strict=True)], dim=1)

    def agree(self, value: Agreed) -> Agreed:
        data = self._broadcast(msgspec.msgpack.encode(value) if self.shard.rank == 0 else None)
        return msgspec.msgpack.decode(data, type=type(value))

    def _broadcast(self, data: bytes | None) -> bytes:
        size = torch.tensor([0 if data is None else len(data)])
        dist.broadcast(size, 0, group=self._control)
        content = torch.empty(int(size), dtype=torch.uint8)
        if data is not None:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(content, 0, group=self._control)
        return content.numpy().tobytes()
