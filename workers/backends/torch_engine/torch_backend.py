"""The torch backend: a paged decoder on the CPU, a GPU or MPS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from msgspec.structs import replace
from torch import Tensor

from inferflux.config.logs import get_logger
from inferflux.config.settings import RuntimeSettings

from ..backend import Capacity, Chunk, Sample, SamplingParams, Tokenizer
from ..cores import num_physical_cores
from .checkpoint import open_checkpoint
from .choosing import choose_operations
from .decode_graphs import DecodeGraphs
from .device import available_bytes, choose_device, choose_dtype
from .drawn import Embedded, LaunchedBatch, Part
from .exchange import Exchange, NoExchange
from .kv_pages import KVPages
from .native_decoder import make_decoder
from .sampler import Sampler
from .shard import Shard
from .sizing import KVSize, size_kv
from .slots import Slots
from .step import Step, make_step
from .transfer import download
from .weights import WeightReader

log = get_logger("torch")

REHEARSED = SamplingParams(top_p=0.5, num_logprobs=0)
"""The draw that takes most memory."""


class TorchBackend:
    """Pages are tensors that every slot can read; a sequence's block table says which are its own."""

    name = "torch"
    lost = False

    def __init__(
        self, path: str, settings: RuntimeSettings, shard: Shard | None = None, exchange: Exchange | None = None
    ) -> None:
        self.progress = 0.0
        self._path = Path(path)
        self._settings = settings
        self._shard = shard or Shard()
        self._exchange = exchange or NoExchange()
        self._sampler = Sampler()
        self._graphs: DecodeGraphs | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def start(self) -> Capacity:
        settings = self._settings
        torch.set_num_threads(settings.torch.threads or num_physical_cores())
        self._device = device = choose_device(settings.torch)
        dtype = choose_dtype(settings.torch, device)
        checkpoint = open_checkpoint(self._path)
        whole = checkpoint.architecture
        local = self._shard.local(whole)
        self._tokenizer = checkpoint.tokenizer()
        operations, page_size = choose_operations(device, dtype, local, settings.paged_kv.page_size, settings.torch)
        self._page_size = page_size
        weights = WeightReader(checkpoint, operations, self._shard, device, dtype).read(self._loaded)
        length = min(settings.torch.context_length or whole.trained_length, whole.trained_length)
        self._decoder = make_decoder(local, weights, operations, self._exchange, length, device)
        self._num_slots = settings.scheduler.max_batch_size
        self._max_batch_tokens = max(settings.scheduler.max_batch_tokens, self._num_slots)
        hardware: Literal["cpu", "gpu"] = "cpu" if device.type == "cpu" else "gpu"
        page_bytes = operations.make_pages(1, page_size, local).num_bytes * whole.num_layers
        spare_bytes = available_bytes(device, self._rehearse)
        own = device.type == "cuda"
        size = size_kv(settings, page_size, whole.trained_length, page_bytes, spare_bytes, has_own_memory=own)
        size = self._exchange.agree(size)
        self._allocate(size)
        log.info(
            "model loaded",
            path=str(self._path),
            family=whole.family,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            operations=operations.name,
            pages=size.num_pages,
            kv_mib=self._pages.num_bytes >> 20,
            threads=torch.get_num_threads(),
        )
        return Capacity(
            num_pages=size.num_pages,
            page_size=page_size,
            max_sequences=self._num_slots,
            max_batch_tokens=self._max_batch_tokens,
            context_length=size.context_length,
            vocab_size=whole.vocab_size,
            embedding_size=whole.hidden_size,
            fingerprint=f"{checkpoint.digest()}/{dtype}/{operations.name}/torch {torch.__version__}",
            pages_shared=True,
            hardware=hardware,
            model_bytes=weights.num_bytes,
            kv_bytes=self._pages.num_bytes,
        )

    @property
    def defers(self) -> bool:
        """On CUDA a step is queued; elsewhere it is computed before `launch` returns."""
        return self._device.type == "cuda"

    @torch.inference_mode()
    def launch(self, batch: Sequence[Chunk]) -> LaunchedBatch:
        generating = [index for index, chunk in enumerate(batch) if not chunk.embed]
        parts = self._generate(batch, generating) if generating else []
        parts += [Part([index], self._embed(chunk)) for index, chunk in enumerate(batch) if chunk.embed]
        return LaunchedBatch(len(batch), parts, self._device)

    def run(self, batch: Sequence[Chunk]) -> list[Sample]:
        return self.launch(batch).result()

    def fork(self, source: int, target: int, num_tokens: int) -> None:
        self._slots.give(target, self._slots.content(source, num_tokens), num_tokens)

    def trim(self, slot: int, num_tokens: int) -> None:
        self._slots.trim(slot, num_tokens)

    def save(self, slot: int, num_tokens: int) -> bytes:
        return self._slots.content(slot, num_tokens).numpy().tobytes()

    def load(self, slot: int, data: bytes, num_tokens: int) -> bool:
        content = self._pages.parse(data)
        if content is None or content.shape[1] * self._pages.page_size < num_tokens:
            self.trim(slot, 0)
            return False
        self._slots.give(slot, content, num_tokens)
        return True

    def read_pages(self, pages: Sequence[int]) -> bytes:
        return self._pages.read(pages).numpy().tobytes()

    @torch.inference_mode()
    def write_pages(self, pages: Sequence[int], data: bytes, first: int) -> bool:
        content = self._pages.parse(data)
        if content is None or content.shape[1] < first + len(pages):
            return False
        self._pages.write(pages, content[:, first : first + len(pages)])
        return True

    def num_computed(self, slot: int) -> int:
        return self._slots[slot].num_tokens

    def close(self) -> None:
        """Let go of weights and pages."""
        self._graphs = None
        for name in ("_decoder", "_pages", "_slots"):
            self.__dict__.pop(name, None)

    def _loaded(self, progress: float) -> None:
        self.progress = progress

    @torch.inference_mode()
    def _allocate(self, size: KVSize) -> None:
        """Pages, and one more where graphs are used: their rows without a sequence compute in it."""
        uses_graphs = self._device.type == "cuda" and self._shard.world_size == 1
        page_size = self._page_size
        self._pages = KVPages(self._decoder.make_pages, size.num_pages + uses_graphs, page_size)
        self._slots = Slots(self._num_slots, self._pages)
        if uses_graphs:
            self._graphs = DecodeGraphs(
                self._compute, self._num_slots, size.context_length, page_size, spare_page=size.num_pages
            )
            self._graphs.capture(self._device)

    @torch.inference_mode()
    def _rehearse(self) -> None:
        """The largest step there is, in pages that go afterwards, and a draw for every slot."""
        page_size = self._page_size
        num_pages = -(-self._max_batch_tokens // page_size)
        chunk = Chunk(slot=0, start=0, tokens=[0] * self._max_batch_tokens, block_table=range(num_pages))
        hidden = self._decoder.hidden(
            make_step([chunk], page_size, self._device), self._decoder.make_pages(num_pages, page_size)
        )
        logits = self._decoder.logits(hidden[: self._num_slots])
        if not self._shard.rank:
            self._sampler.draw(logits, [replace(chunk, sampling=REHEARSED)] * len(logits))

    def _generate(self, batch: Sequence[Chunk], indices: Sequence[int]) -> list[Part]:
        """Tokens of these chunks. A batch that a GPU has no memory for, which shows while it is queued, is computed in
        two."""
        try:
            return self._generate_at_once(batch, indices)
        except torch.OutOfMemoryError:
            # Ranks could not agree on it: each runs out at a time of its own.
            if len(indices) == 1 or self._shard.world_size > 1:
                raise
        log.warning("out of memory: the batch is split", num_sequences=len(indices))
        torch.cuda.empty_cache()
        half = len(indices) // 2
        return [*self._generate(batch, indices[:half]), *self._generate(batch, indices[half:])]

    def _generate_at_once(self, batch: Sequence[Chunk], indices: Sequence[int]) -> list[Part]:
        chunks = [batch[index] for index in indices]
        for chunk in chunks:
            self._slots.enter(chunk.slot, chunk.block_table, chunk.start + len(chunk.tokens))
        step = make_step(chunks, self._pages.page_size, self._device)
        logits = None if self._graphs is None else self._graphs.run(step)
        if logits is None:
            logits = self._compute(step)
        drawing = [index for index in indices if batch[index].sampling is not None]
        if not drawing or self._shard.rank:
            return []  # rank 0 draws
        return [Part(drawing, self._sampler.draw(logits, [batch[index] for index in drawing]))]

    def _compute(self, step: Step) -> Tensor:
        """Logits of the rows that are wanted; none where nothing is."""
        hidden = self._decoder.hidden(step, self._pages.layers)
        if not step.outputs.shape[0]:
            return hidden[:0]
        return self._decoder.logits(hidden[step.outputs])

    def _embed(self, chunk: Chunk) -> Embedded:
        """Sum of the last states. The prompt is computed in pages of its own, which go afterwards."""
        page_size = self._pages.page_size
        num_pages = -(-len(chunk.tokens) // page_size)
        pages = self._decoder.make_pages(num_pages, page_size)
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(chunk.tokens), self._max_batch_tokens):
            tokens = chunk.tokens[start : start + self._max_batch_tokens]
            part = Chunk(slot=chunk.slot, start=start, tokens=tokens, block_table=range(num_pages))
            hidden = self._decoder.hidden(make_step([part], page_size, self._device), pages)
            if hidden.device.type == "mps":
                hidden = hidden.cpu()  # it has no float64
            total = total + hidden.sum(0, dtype=torch.float64)
        self._slots.trim(chunk.slot, chunk.start + len(chunk.tokens))
        return Embedded(download(total))
