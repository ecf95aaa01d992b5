"""Operations on a CUDA device: torch's own paged FlashAttention, where it computes what the reference computes."""

from __future__ import annotations

import inspect
import itertools

import torch
from torch import Tensor

from inferflux.config.logs import get_logger

from ..backend import Chunk
from .architecture import Architecture
from .operations import Layer, Pages, PlainOperations
from .step import Step, make_step

log = get_logger("torch")

TOLERANCE = 2e-2
FLASH_PAGE_SIZE = 256
"""What the kernel inside torch wants; those that can be activated in its place take smaller pages."""


class CudaOperations(PlainOperations):
    """`varlen_attn` reads keys and values where they lie, prompts in chunks and single tokens in one call.

    Some of its kernels refuse where keys begin, because pages say it; others want a tensor, which is not looked at.
    """

    name = "varlen_attn over pages"

    def __init__(self, device: torch.device, dtype: torch.dtype, *, names_keys: bool) -> None:
        super().__init__(device, dtype)
        self._names_keys = names_keys

    def see(self, queries: Tensor, step: Step, pages: Pages, layer: Layer) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        seen = varlen_attn(
            queries,
            pages.keys,
            pages.values,
            step.starts,
            step.starts if self._names_keys else None,
            step.max_query,
            step.max_length,
            window_size=(-1 if layer.window is None else layer.window - 1, 0),
            enable_gqa=True,
            seqused_k=step.lengths,
            block_table=step.block_tables,
        )
        assert isinstance(seen, Tensor)
        return seen.flatten(1)


def choose_cuda_operations(
    device: torch.device, dtype: torch.dtype, model: Architecture, page_size: int
) -> tuple[PlainOperations, int]:
    """The paged kernel when this torch has it and it agrees with plain torch on this device and head size, and the page
    size to use: larger than the wanted one if the kernel takes no smaller."""
    plain = PlainOperations(device, dtype)
    reasons = []
    for size, names_keys in itertools.product(dict.fromkeys((page_size, FLASH_PAGE_SIZE)), (False, True)):
        try:
            from torch.nn.attention.varlen import varlen_attn

            if "block_table" not in inspect.signature(varlen_attn).parameters:
                raise NotImplementedError("this torch's varlen_attn takes no block_table")
            paged = CudaOperations(device, dtype, names_keys=names_keys)
            difference = _disagreement(plain, paged, model, size, device, dtype)
            if not difference < TOLERANCE:
                raise RuntimeError(f"its results are {difference:.3g} away from the reference")
        except Exception as error:  # whatever a kernel refuses with, plain torch still computes
            reasons.append(f"pages of {size}: {str(error).partition(chr(10))[0]}")
            continue
        if size != page_size:
            log.info("pages are larger than runtime.paged_kv.page_size", page_size=size, reason=reasons[0])
        return paged, size
    log.warning("paged attention is not used: plain torch gathers contexts", reasons=list(dict.fromkeys(reasons)))
    return plain, page_size


def _disagreement(
    plain: PlainOperations,
    paged: PlainOperations,
    model: Architecture,
    page_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """The largest difference over a batch with a chunk, a whole prompt and a single token, with and without window."""
    generator = torch.Generator(device).manual_seed(0)
    chunks, num_pages = [], 0
    for slot, length in enumerate((1, 2 * page_size + 5, 4 * page_size + 6)):
        used = -(-length // page_size)
        table = list(range(num_pages + used - 1, num_pages - 1, -1))
        start = length - 1 if slot == 1 else length // 2
        chunks.append(Chunk(slot=slot, start=start, tokens=[0] * (length - start), block_table=table))
        num_pages += used
    step = make_step(chunks, page_size, device)
    pages = plain.make_pages(num_pages, page_size, model)
    for tensor in pages:
        tensor.normal_(generator=generator)
    shape = (step.tokens.shape[0], model.num_heads, model.head_size)
    queries = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    worst = 0.0
    for window in (None, 16):
        layer = Layer(model.num_heads, model.num_kv_heads, model.head_size, window, None, model.norm_epsilon)
        expected, got = (each.see(queries, step, pages, layer) for each in (plain, paged))
        worst = max(worst, float((expected - got).abs().nan_to_num(torch.inf).max()))
    return worst
