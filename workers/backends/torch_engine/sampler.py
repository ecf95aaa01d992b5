"""Drawing the tokens of a whole batch on the device that computed its logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..backend import Chunk, SamplingParams
from ..draw import draw_uniform
from .drawn import Described, Drawn
from .transfer import download, upload

BLOCK = 256
MAX_CANDIDATES = 1024
"""How many of the likeliest tokens are sorted at first where not all are: a whole vocabulary takes milliseconds."""


class Sampler:
    """Penalties and logit bias, then a draw for each row. Filters see the distribution before the temperature does.

    It keeps no state between tokens: a draw depends on logits, history, seed and position alone, so that whoever
    resumes a sequence draws what the first attempt would have drawn. Nothing here looks at what a GPU has computed,
    which would make the host wait for it.
    """

    def draw(self, logits: Tensor, chunks: Sequence[Chunk]) -> Drawn:
        """A token for each row of `logits` (rows, vocabulary), fp32; each chunk has its sampling parameters."""
        params = [chunk.sampling for chunk in chunks if chunk.sampling is not None]
        assert len(params) == len(logits)
        if logits.device.type == "mps":
            logits = logits.cpu()  # it has no float64, which draws are added up in
        adjusted = _adjust(logits, chunks)
        tokens = _likeliest(adjusted)
        drawing = [row for row, each in enumerate(params) if each.temperature > 0.0]
        if drawing:
            rows = upload(drawing, torch.int64, logits.device)
            uniforms = [draw_uniform(params[row].seed, len(chunks[row].history)) for row in drawing]
            tokens[rows] = _draw(adjusted[rows], [params[row] for row in drawing], uniforms)
        describing = [row for row, each in enumerate(params) if each.num_logprobs is not None]
        described = None
        if describing:
            described = _describe(logits, tokens, describing, [params[row].num_logprobs or 0 for row in describing])
        return Drawn(download(tokens), described)


def _likeliest(logits: Tensor) -> Tensor:
    """Of each row. On a CPU numpy finds them in a tenth of the time."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(1))
    return logits.argmax(dim=1)


def _adjust(logits: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    """Presence and frequency count what was generated, as OpenAI defines them; repetition counts the prompt too."""
    device, adjusted = logits.device, logits
    for row, chunk in enumerate(chunks):
        params = chunk.sampling
        assert params is not None
        penalizes = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
        if not penalizes and not params.logit_bias:
            continue
        if adjusted is logits:
            adjusted = logits.clone()
        values = adjusted[row]
        if params.repetition_penalty != 1.0:
            seen = upload(np.unique(chunk.history), torch.int64, device)
            known = values[seen]
            values[seen] = torch.where(known > 0, known / params.repetition_penalty, known * params.repetition_penalty)
        generated = chunk.history[chunk.num_prompt_tokens :]
        if generated and (params.presence_penalty or params.frequency_penalty):
            tokens, counts = (upload(each, torch.int64, device) for each in np.unique(generated, return_counts=True))
            values[tokens] -= params.presence_penalty + params.frequency_penalty * counts
        if params.logit_bias:
            biased, biases = zip(*params.logit_bias, strict=True)
            values[upload(biased, torch.int64, device)] += upload(biases, torch.float32, device)
    return adjusted


def _draw(logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    device = logits.device
    temperatures = upload([each.temperature for each in params], torch.float32, device)[:, None]
    draws = upload(uniforms, torch.float64, device)[:, None]
    filtered = [row for row, each in enumerate(params) if each.top_k > 0 or each.top_p < 1.0 or each.min_p > 0.0]
    if len(filtered) < len(params):
        weights = torch.softmax(logits / temperatures, dim=1)
        tokens = _pick(weights, draws)
    else:
        tokens = torch.zeros(len(params), dtype=torch.int64, device=device)
    if filtered:
        rows = upload(filtered, torch.int64, device)
        ids, kept = _filter(logits[rows], [params[row] for row in filtered])
        weights = torch.softmax(kept / temperatures[rows], dim=1)
        tokens[rows] = ids.gather(1, _pick(weights, draws[rows])[:, None])[:, 0]
    return tokens


def _filter(logits: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor, Tensor]:
    """The likeliest tokens of each row, in order, and their logits; -inf for those that a filter takes away."""
    vocab_size = logits.shape[1]
    bounded = all(each.top_k > 0 for each in params)
    largest = min(vocab_size, max(each.top_k for each in params))
    # Sorting everything needs no look at the result, which a device would have to be waited for.
    on_host = logits.device.type == "cpu"
    num_candidates = largest if bounded else min(vocab_size, max(MAX_CANDIDATES, largest)) if on_host else vocab_size
    while True:
        values, ids = logits.topk(num_candidates, dim=1)
        kept, complete = _apply_filters(logits, values, params)
        if bounded or num_candidates == vocab_size or bool(complete.all()):
            return ids, kept
        num_candidates = vocab_size


def _apply_filters(logits: Tensor, values: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor, Tensor]:
    """Top-k, then top-p of what is left, then min-p. Also whether nothing beyond `values` could have been kept."""

    def column(numbers: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return upload(numbers, dtype, logits.device)[:, None]

    vocab_size = logits.shape[1]
    top_k = column([each.top_k if each.top_k > 0 else vocab_size for each in params], torch.int64)
    top_p, min_p = column([each.top_p for each in params]), column([each.min_p for each in params])
    ranks = torch.arange(values.shape[1], device=logits.device)
    within = ranks < top_k
    kept = values.masked_fill(~within, -torch.inf)
    total = torch.where(top_k < vocab_size, kept.logsumexp(1, keepdim=True), logits.logsumexp(1, keepdim=True))
    probabilities = (kept - total).exp()
    before = probabilities.cumsum(1, dtype=torch.float64) - probabilities
    keep = within & ((before < top_p) | (top_p >= 1.0)) & (probabilities >= min_p * probabilities[:, :1])
    keep[:, 0] = True
    return kept.masked_fill(~keep, -torch.inf), ~keep[:, -1]


def _pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The index at which each row's running sum passes its uniform share of the whole: first the block, then inside."""
    padding = -weights.shape[1] % BLOCK
    blocks = torch.nn.functional.pad(weights, (0, padding)).view(len(weights), -1, BLOCK)
    sums = blocks.sum(2, dtype=torch.float64).cumsum(1)
    targets = uniforms * sums[:, -1:]
    last = sums.shape[1] - 1
    number = torch.searchsorted(sums, targets, right=True).clamp_(max=last)
    below = torch.where(number > 0, sums.gather(1, (number - 1).clamp_(min=0)), 0.0)
    inner = blocks[torch.arange(len(blocks), device=weights.device), number[:, 0]].cumsum(1, dtype=torch.float64)
    # Rounding must not carry the draw past the block's end, where weights may be zero.
    inside = torch.minimum(targets - below, inner[:, -1:] * (1 - 2.0**-50))
    offset = torch.searchsorted(inner, inside, right=True).clamp_(max=BLOCK - 1)
    return (number * BLOCK + offset)[:, 0]


def _describe(logits: Tensor, tokens: Tensor, rows: Sequence[int], counts: Sequence[int]) -> Described:
    """Log probabilities under the unmodified distribution, of the drawn token and of the likeliest `counts`."""
    wanted = upload(rows, torch.int64, logits.device)
    logprobs = logits[wanted].log_softmax(1)
    chosen = logprobs.gather(1, tokens[wanted][:, None])[:, 0]
    values, ids = logprobs.topk(max(*counts, 1), dim=1)
    return Described(rows, counts, download(chosen), download(ids), download(values))
