"""Drawing a token from a row of logits."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as lib
import msgspec
import numpy as np
from numpy.typing import NDArray

from .backend import Chunk, Logprob, Sample, SamplingParams
from .draw import draw, draw_seed, draw_uniform

Row = NDArray[np.float32]
MAX_CHAINS = 64


class Sampler:
    """Penalties and logit bias, then a draw; with top-k, top-p or min-p through llama.cpp's own sampler chain.

    It keeps no state between tokens: the draw depends on the logits, the history, the seed and the position alone, so
    that whoever resumes a sequence draws what the first attempt would have drawn.
    """

    def __init__(self, vocab_size: int) -> None:
        self._ids = np.arange(vocab_size, dtype=np.int32)
        self._candidates = np.zeros(vocab_size, dtype=[("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
        self._chains: OrderedDict[SamplingParams, Any] = OrderedDict()

    def sample(self, logits: Row, chunk: Chunk) -> Sample:
        """Draw the token that follows `chunk.history`. `logits` is the model's row, which is not changed."""
        params = chunk.sampling
        assert params is not None
        adjusted = self._penalize(logits, chunk, params)
        if params.temperature <= 0.0:
            token = int(np.argmax(self._bias(adjusted, params)))
        elif params.top_k <= 0 and params.top_p >= 1.0 and params.min_p <= 0.0:
            uniform = draw_uniform(params.seed, len(chunk.history))
            token = draw(self._bias(adjusted, params), params.temperature, uniform)
        else:
            token = self._filter_and_draw(adjusted, params, len(chunk.history))
        if params.num_logprobs is None:
            return Sample(token)
        return describe(logits, token, params.num_logprobs)

    def close(self) -> None:
        for chain in self._chains.values():
            lib.llama_sampler_free(chain)
        self._chains.clear()

    def _penalize(self, logits: Row, chunk: Chunk, params: SamplingParams) -> Row:
        """Presence and frequency count what was generated, as OpenAI defines them; repetition counts the prompt too."""
        if params.repetition_penalty == 1.0 and not params.presence_penalty and not params.frequency_penalty:
            return logits
        logits = logits.copy()
        if params.repetition_penalty != 1.0:
            seen = np.unique(np.asarray(chunk.history, dtype=np.int32))
            values = logits[seen]
            logits[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        generated = np.asarray(chunk.history[chunk.num_prompt_tokens :], dtype=np.int32)
        tokens, counts = np.unique(generated, return_counts=True)
        logits[tokens] -= params.presence_penalty + params.frequency_penalty * counts.astype(np.float32)
        return logits

    def _bias(self, logits: Row, params: SamplingParams) -> Row:
        if not params.logit_bias:
            return logits
        logits = logits.copy()
        for token, bias in params.logit_bias:
            logits[token] += bias
        return logits

    def _filter_and_draw(self, logits: Row, params: SamplingParams, position: int) -> int:
        candidates = self._candidates
        candidates["id"] = self._ids
        candidates["logit"] = logits
        array = lib.llama_token_data_array(
            data=ctypes.cast(candidates.ctypes.data, lib.llama_token_data_p),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        lib.llama_sampler_apply(self._chain(params), ctypes.byref(array))
        last = lib.llama_sampler_init_dist(draw_seed(params.seed, position))
        lib.llama_sampler_apply(last, ctypes.byref(array))
        lib.llama_sampler_free(last)
        return int(array.data[array.selected].id)

    def _chain(self, params: SamplingParams) -> Any:
        """The filters of these parameters; they have no state, so sequences share them."""
        key = msgspec.structs.replace(params, seed=0, num_logprobs=None)
        chain = self._chains.get(key)
        if chain is not None:
            self._chains.move_to_end(key)
            return chain
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if params.logit_bias:
            biases = (lib.llama_logit_bias * len(params.logit_bias))(*params.logit_bias)
            lib.llama_sampler_chain_add(
                chain, lib.llama_sampler_init_logit_bias(len(self._ids), len(params.logit_bias), biases)
            )
        if params.top_k > 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1.0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0.0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_min_p(params.min_p, 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(params.temperature))
        self._chains[key] = chain
        if len(self._chains) > MAX_CHAINS:
            _, oldest = self._chains.popitem(last=False)
            lib.llama_sampler_free(oldest)
        return chain


def describe(logits: Row, token: int, count: int) -> Sample:
    """A drawn token with its log probability and the `count` likeliest tokens' under the unmodified distribution."""
    highest = float(logits.max())
    log_total = highest + float(np.log(np.exp(logits - highest, dtype=np.float64).sum()))
    top: Sequence[int] = ()
    if count:
        likeliest = np.argpartition(logits, -count)[-count:]
        top = likeliest[np.argsort(-logits[likeliest], kind="stable")].tolist()
    return Sample(
        token,
        Logprob(token, float(logits[token]) - log_total),
        tuple(Logprob(other, float(logits[other]) - log_total) for other in top),
    )
