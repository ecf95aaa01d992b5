"""Every rank but the first: computes its share of what rank 0 announces."""

from __future__ import annotations

import torch
from torch._C._distributed_c10d import TCPStore

from inferflux.config.logs import get_logger

from ...ranks import Ranks
from .rank_group import Close, Fork, Open, RankGroup, Run, Trim, present
from .torch_backend import TorchBackend

log = get_logger("ranks")


def follow(ranks: Ranks) -> None:
    """Returns only by RuntimeError, when rank 0 is gone."""
    assert ranks.rank
    assert ranks.address
    host, _, port = ranks.address.rpartition(":")
    store = TCPStore(host, int(port), ranks.world_size, is_master=False)
    store.set(present(ranks.rank), "yes")
    group = RankGroup(ranks.rank, ranks.world_size, ranks.backend, store)
    if ranks.backend == "nccl":
        torch.cuda.set_device(ranks.rank % torch.cuda.device_count())
    opened: dict[int, TorchBackend] = {}
    while True:
        match group.receive():
            case Open(number, path, settings):
                opened[number] = TorchBackend(path, settings, group.shard, group)
                opened[number].start()
            case Run(number, batch):
                opened[number].launch(batch)  # rank 0 waits for the result
            case Fork(number, source, target, num_tokens):
                opened[number].fork(source, target, num_tokens)
            case Trim(number, slot, num_tokens):
                opened[number].trim(slot, num_tokens)
            case Close(number):
                opened.pop(number).close()
