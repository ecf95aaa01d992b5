"""How many slots of how many tokens the KV cache of llama.cpp gets."""

from __future__ import annotations

import msgspec

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import RuntimeSettings

CELL_PADDING = 256
"""llama.cpp rounds a slot up to this many cells."""

AUTO_CONTEXT_LENGTH = 2048
AUTO_MEMORY_SHARE = 0.25


class KVSize(msgspec.Struct, frozen=True):
    """`num_slots` streams of `context_length` tokens each; `num_pages` whole pages fit into all of them."""

    num_slots: int
    context_length: int
    num_pages: int
    kv_bytes: int


def size_kv(settings: RuntimeSettings, trained_length: int, token_bytes: int, available_bytes: int) -> KVSize:
    """Divide the KV cache into slots. Every slot has the same length, and all of it is allocated at the start.

    `llamacpp.context_length` fixes the length and `paged_kv.cpu_pages` the total. Whatever is not set follows from
    the other; with neither, slots are 2,048 tokens long, or as long as the model was trained for, and as many as fit
    into a quarter of the memory that is free. Raises ConfigError when not even one slot fits.
    """
    page_size, wanted = settings.paged_kv.page_size, settings.scheduler.max_batch_size
    total = settings.paged_kv.cpu_pages * page_size
    length = min(settings.llamacpp.context_length or trained_length, trained_length)
    if total:
        if not settings.llamacpp.context_length:
            length = min(length, total // wanted)
        fitting = total // max(length, 1)
    else:
        if not settings.llamacpp.context_length:
            length = min(length, AUTO_CONTEXT_LENGTH)
        fitting = max(1, int(available_bytes * AUTO_MEMORY_SHARE) // (_cells(length) * token_bytes))
    length -= length % page_size
    if not length or not fitting:
        raise ConfigError(
            f"runtime.paged_kv.cpu_pages: {settings.paged_kv.cpu_pages} pages of {page_size} tokens are too few for "
            f"{wanted} slots (runtime.scheduler.max_batch_size) of at least a page, or for one slot of "
            f"runtime.llamacpp.context_length tokens; raise it, or set it to 0 to size the cache automatically"
        )
    num_slots = min(wanted, fitting)
    return KVSize(num_slots, length, num_slots * (length // page_size), num_slots * _cells(length) * token_bytes)


def _cells(length: int) -> int:
    return -(-length // CELL_PADDING) * CELL_PADDING
