"""llama.cpp's own greedy generation, with none of InferFlux's code in it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np

CONTEXT_LENGTH = 512


class GreedyReference:
    """One sequence in one plain context, decoded with the library's batches and its greedy sampler."""

    def __init__(self, path: str, num_threads: int, num_outputs: int = 1) -> None:
        self._model: Any = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        self._vocab = lib.llama_model_get_vocab(self._model)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = CONTEXT_LENGTH
        params.n_outputs_max = num_outputs
        params.n_threads = params.n_threads_batch = num_threads
        self._context: Any = lib.llama_init_from_model(self._model, params)
        self._sampler: Any = lib.llama_sampler_init_greedy()

    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        """The tokens that follow, the end of the sequence treated like any other token."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        tokens: list[int] = []
        pending = list(prompt)
        for _ in range(count):
            array = (lib.llama_token * len(pending))(*pending)
            assert lib.llama_decode(self._context, lib.llama_batch_get_one(array, len(pending))) == 0
            pending = [lib.llama_sampler_sample(self._sampler, self._context, -1)]
            tokens += pending
        return tokens

    def logits(self, prompt: Sequence[int], chunk: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Of the token that follows, the prompt decoded in chunks of that many tokens."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        for start in range(0, len(prompt), chunk):
            part = prompt[start : start + chunk]
            array = (lib.llama_token * len(part))(*part)
            assert lib.llama_decode(self._context, lib.llama_batch_get_one(array, len(part))) == 0
        shape = (lib.llama_vocab_n_tokens(self._vocab),)
        return np.ctypeslib.as_array(lib.llama_get_logits(self._context), shape=shape).astype(np.float64)

    def gaps(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """How far the logit of each token of an answer is below the best one, after all the tokens before it; 0 where
        it is the best itself. At most `num_outputs` tokens."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        tokens = [*prompt, *answer[:-1]]
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for position, token in enumerate(tokens):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = position >= len(prompt) - 1
        assert lib.llama_decode(self._context, batch) == 0
        lib.llama_batch_free(batch)
        shape = (lib.llama_vocab_n_tokens(self._vocab),)
        gaps = []
        for position, token in enumerate(answer, len(prompt) - 1):
            logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, position), shape=shape)
            gaps.append(float(logits.max() - logits[token]))
        return gaps

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        tokens = (lib.llama_token * (len(data) + 8))()
        count = lib.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), True, True)
        return list(tokens[:count])

    def text(self, tokens: Sequence[int]) -> str:
        """Up to the end of the sequence, where there is one."""
        pieces = []
        for token in tokens:
            if lib.llama_vocab_is_eog(self._vocab, token):
                break
            buffer = (ctypes.c_char * 256)()
            pieces.append(buffer[: lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)])
        return b"".join(pieces).decode("utf-8", "replace")

    def close(self) -> None:
        lib.llama_sampler_free(self._sampler)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)
