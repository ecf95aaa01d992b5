"""The llama.cpp backend: GGUF models through the library's low-level interface."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import llama_cpp
import llama_cpp.llama_cpp as lib
import numpy as np
import psutil
from numpy.typing import NDArray

from inferflux.broker.errors import ConfigError
from inferflux.config.logs import get_logger
from inferflux.config.settings import RuntimeSettings

from .backend import Capacity, Chunk, Sample
from .bridges import bridges
from .cores import num_physical_cores
from .llamacpp_batch import Batch
from .llamacpp_log import native_log
from .llamacpp_model import LlamaCppModel
from .llamacpp_sampler import Sampler
from .llamacpp_sizing import KVSize, size_kv
from .llamacpp_tokenizer import LlamaCppTokenizer

log = get_logger("llamacpp")

MAX_PASS_TOKENS = 512
FILLER_TOKEN = 0
KV_TYPES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0}
KV_VALUE_BYTES = {"f16": 2.0, "q8_0": 34 / 32}
FLASH_ATTENTION = {
    None: lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    True: lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    False: lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


class LlamaCppBackend:
    """One context with a KV stream for each slot, so that attention scans a sequence's own cells only.

    A slot is a llama.cpp sequence id. Copies go through the sequence's saved state, which holds only the cells in
    use: a stream copy inside the library moves the whole stream and is put off until the next decode.
    """

    name = "llamacpp"
    lost = False

    def __init__(self, path: str, settings: RuntimeSettings) -> None:
        self.progress = 0.0
        self._path = Path(path)
        self._settings = settings
        self._model: LlamaCppModel | None = None
        self._context: Any = None

    @property
    def tokenizer(self) -> LlamaCppTokenizer:
        return self._tokenizer

    def start(self) -> Capacity:
        lib.llama_backend_init()
        self._model = model = LlamaCppModel(self._path, self._settings.llamacpp.n_gpu_layers, self._loaded)
        self._tokenizer = LlamaCppTokenizer(model.native)
        self._embedding_size = model.embedding_size
        kv_type = self._settings.paged_kv.type
        size = size_kv(
            self._settings,
            trained_length=model.trained_length,
            token_bytes=int(model.kv_values_per_token() * KV_VALUE_BYTES[kv_type]),
            available_bytes=psutil.virtual_memory().available,
        )
        max_batch_tokens = max(self._settings.scheduler.max_batch_tokens, size.num_slots)
        num_threads = self._settings.llamacpp.threads or num_physical_cores()
        self._context = self._make_context(model, size, max_batch_tokens, num_threads)
        self._memory = lib.llama_get_memory(self._context)
        self._batch = Batch(max_batch_tokens + size.num_slots)
        self._sampler = Sampler(self._tokenizer.vocab_size)
        self._num_slots = size.num_slots
        self._context_length = size.context_length
        log.info(
            "model loaded",
            path=str(self._path),
            slots=size.num_slots,
            context_length=size.context_length,
            kv_mib=size.kv_bytes >> 20,
            threads=num_threads,
        )
        return Capacity(
            num_pages=size.num_pages,
            page_size=self._settings.paged_kv.page_size,
            max_sequences=size.num_slots,
            max_batch_tokens=max_batch_tokens,
            context_length=size.context_length,
            vocab_size=self._tokenizer.vocab_size,
            embedding_size=self._embedding_size,
            fingerprint=f"{model.digest()}/{kv_type}/llama-cpp-python {llama_cpp.__version__}",
            hardware=self._hardware(),
            model_bytes=model.num_bytes,
            kv_bytes=size.kv_bytes,
        )

    def run(self, batch: Sequence[Chunk]) -> list[Sample]:
        samples = [Sample()] * len(batch)
        generating = [index for index, chunk in enumerate(batch) if not chunk.embed]
        if generating:
            generating.sort(key=lambda index: batch[index].slot)
            self._generate(batch, generating, samples)
        for index, chunk in enumerate(batch):
            if chunk.embed:
                samples[index] = self._embed(chunk)
        return samples

    def fork(self, source: int, target: int, num_tokens: int) -> None:
        state = self._read_state(source)
        if not lib.llama_state_seq_set_data(self._context, _as_bytes(state), len(state), target):
            raise RuntimeError(f"slot {source} could not be copied to slot {target}: {native_log.take_problems()}")
        self.trim(target, num_tokens)

    def trim(self, slot: int, num_tokens: int) -> None:
        if not lib.llama_memory_seq_rm(self._memory, slot, num_tokens, -1):
            raise RuntimeError(f"slot {slot} could not be cut to {num_tokens} tokens")

    def save(self, slot: int, num_tokens: int) -> bytes:
        assert num_tokens <= self.num_computed(slot)
        return self._read_state(slot).tobytes()

    def load(self, slot: int, data: bytes, num_tokens: int) -> bool:
        state = np.frombuffer(data, dtype=np.uint8)
        num_read = lib.llama_state_seq_set_data(self._context, _as_bytes(state), len(state), slot) if data else 0
        if num_read and self.num_computed(slot) >= num_tokens:
            self.trim(slot, num_tokens)
            return True
        self.trim(slot, 0)
        return False

    def num_computed(self, slot: int) -> int:
        last: int = lib.llama_memory_seq_pos_max(self._memory, slot)
        return last + 1

    def close(self) -> None:
        if self._context is not None:
            self._sampler.close()
            lib.llama_free(self._context)
            self._context = None
        if self._model is not None:
            self._model.close()
            self._model = None

    def _loaded(self, progress: float) -> None:
        self.progress = progress

    def _make_context(self, model: LlamaCppModel, size: KVSize, max_batch_tokens: int, num_threads: int) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = size.context_length * size.num_slots
        params.n_seq_max = size.num_slots
        params.kv_unified = False
        params.n_batch = max_batch_tokens + size.num_slots
        params.n_ubatch = min(max_batch_tokens, MAX_PASS_TOKENS)
        params.n_outputs_max = size.num_slots
        params.n_threads = params.n_threads_batch = num_threads
        params.type_k = params.type_v = KV_TYPES[self._settings.paged_kv.type]
        params.flash_attn_type = FLASH_ATTENTION[self._settings.llamacpp.flash_attention]
        # Windowed attention would drop cells that a later sequence wants to start from.
        params.swa_full = True
        native_log.take_problems()
        context = lib.llama_init_from_model(model.native, params)
        if not context:
            raise ConfigError(
                f"llama.cpp cannot make a context of {size.num_slots} slots with {size.context_length} tokens "
                f"({size.kv_bytes >> 20} MiB): {native_log.take_problems()}; lower runtime.scheduler.max_batch_size or "
                "runtime.llamacpp.context_length, or use another runtime.paged_kv.type"
            )
        return context

    def _hardware(self) -> Literal["cpu", "gpu"]:
        return "gpu" if self._settings.llamacpp.n_gpu_layers and lib.llama_supports_gpu_offload() else "cpu"

    def _generate(self, batch: Sequence[Chunk], order: Sequence[int], samples: list[Sample]) -> None:
        """Compute chunks in the order of their slots: a pass takes neighbouring slots only."""
        self._batch.clear()
        drawing = []
        held = {slot: self.num_computed(slot) for slot in bridges([batch[index] for index in order])}
        fillers = [slot for slot, num_tokens in held.items() if num_tokens < self._context_length]
        for index in order:
            chunk = batch[index]
            while fillers and fillers[0] < chunk.slot:
                slot = fillers.pop(0)
                self._batch.add(slot, held[slot], (FILLER_TOKEN,))
            wants_token = chunk.sampling is not None
            self._batch.add(chunk.slot, chunk.start, chunk.tokens, last_output=wants_token)
            if wants_token:
                drawing.append(index)
        try:
            self._decode()
        finally:
            for slot, num_tokens in held.items():
                self.trim(slot, num_tokens)
        if not drawing:
            return
        shape = (len(drawing), self._tokenizer.vocab_size)
        logits = np.ctypeslib.as_array(lib.llama_get_logits(self._context), shape=shape)
        for row, index in zip(logits, drawing, strict=True):
            samples[index] = self._sampler.sample(row, batch[index])

    def _embed(self, chunk: Chunk) -> Sample:
        """Mean of the last hidden states, of unit length. The context yields as many states at a time as it has
        slots, so that no buffer grows with the prompt."""
        total = np.zeros(self._embedding_size, dtype=np.float64)
        lib.llama_set_embeddings(self._context, True)
        try:
            for start in range(0, len(chunk.tokens), self._num_slots):
                tokens = chunk.tokens[start : start + self._num_slots]
                self._batch.clear()
                self._batch.add(chunk.slot, chunk.start + start, tokens, all_outputs=True)
                self._decode()
                shape = (len(tokens), self._embedding_size)
                total += np.ctypeslib.as_array(lib.llama_get_embeddings(self._context), shape=shape).sum(axis=0)
        finally:
            lib.llama_set_embeddings(self._context, False)
        norm = float(np.linalg.norm(total))
        return Sample(embedding=tuple((total / norm if norm else total).tolist()))

    def _decode(self) -> None:
        status = lib.llama_decode(self._context, self._batch.native)
        if status:
            raise RuntimeError(f"llama_decode returned {status}: {native_log.take_problems()}")

    def _read_state(self, slot: int) -> NDArray[np.uint8]:
        size = lib.llama_state_seq_get_size(self._context, slot)
        state = np.empty(size, dtype=np.uint8)
        num_written = lib.llama_state_seq_get_data(self._context, _as_bytes(state), size, slot)
        return state[:num_written]


def _as_bytes(array: NDArray[np.uint8]) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
