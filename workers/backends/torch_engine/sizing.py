"""How many pages the KV cache of the torch backend gets, and how long a sequence may be."""

from __future__ import annotations

import msgspec

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import RuntimeSettings

AUTO_SEQUENCE_LENGTH = 2048
HOST_SHARE, DEVICE_SHARE = 0.25, 0.9
"""A host has other uses for its memory, which MPS shares. What a step needs on a GPU is taken off before."""


class KVSize(msgspec.Struct, frozen=True):
    """`num_pages` serve all sequences together, and one alone when the others leave it room."""

    num_pages: int
    context_length: int


def size_kv(
    settings: RuntimeSettings,
    page_size: int,
    trained_length: int,
    page_bytes: int,
    available_bytes: int,
    *,
    has_own_memory: bool,
) -> KVSize:
    """Room for `paged_kv.cpu_pages` of the size that was set; otherwise 2,048 tokens for each sequence of a full batch,
    or the wanted context length, in at most a quarter of `available_bytes`, or nine tenths of them
    where the device has memory of its own.

    Raises ConfigError when `torch.context_length` does not fit.
    """
    wanted, share = settings.torch.context_length, DEVICE_SHARE if has_own_memory else HOST_SHARE
    num_pages = -(-settings.paged_kv.cpu_pages * settings.paged_kv.page_size // page_size)
    if not num_pages:
        length = min(wanted or AUTO_SEQUENCE_LENGTH, trained_length)
        useful = settings.scheduler.max_batch_size * -(-length // page_size)
        num_pages = max(1, min(useful, int(available_bytes * share) // page_bytes))
    room = num_pages * page_size
    length = min(wanted or trained_length, trained_length)
    if wanted and length > room:
        raise ConfigError(
            f"runtime.torch.context_length: {length} tokens do not fit into {num_pages} pages of {page_size}; lower "
            "it, or raise runtime.paged_kv.cpu_pages"
        )
    return KVSize(num_pages, min(length, room))
