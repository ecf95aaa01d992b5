"""Rotary position embeddings: the table of cosines and sines for every position (Su et al., RoFormer, 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .architecture import Rope


def rope_table(rope: Rope, head_size: int, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each of shape (length, head_size / 2), in fp32. Feature `i` turns with `i + head_size / 2`."""
    frequencies, scale = rope_frequencies(rope, head_size)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return (angles.cos() * scale).contiguous(), (angles.sin() * scale).contiguous()


def rope_frequencies(rope: Rope, head_size: int) -> tuple[Tensor, float]:
    """Radians a position for each pair of features, and what cosines and sines are multiplied by."""
    plain = 1.0 / rope.theta ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    if rope.divisors:
        plain = plain / torch.tensor(rope.divisors)
    match rope.kind:
        case "default":
            return plain, 1.0
        case "linear":
            return plain / rope.factor, 1.0
        case "llama3":
            return _by_wavelength(rope, plain), 1.0
        case "yarn":
            scale = rope.attention_factor
            if scale is None:
                scale = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
            return _by_rotations(rope, plain, head_size), scale


def _by_wavelength(rope: Rope, plain: Tensor) -> Tensor:
    """Llama 3.1: long waves are stretched, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    spread = rope.high_freq_factor - rope.low_freq_factor
    kept = ((rope.original_length / wavelength - rope.low_freq_factor) / spread).clamp(0.0, 1.0)
    return (1 - kept) * plain / rope.factor + kept * plain


def _by_rotations(rope: Rope, plain: Tensor, head_size: int) -> Tensor:
    """YaRN (Peng et al., 2023): features that turn often within the original length are kept."""

    def feature(num_rotations: float) -> float:
        turns = rope.original_length / (num_rotations * 2 * math.pi)
        return head_size * math.log(turns) / (2 * math.log(rope.theta))

    low, high = feature(rope.beta_fast), feature(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    if low == high:
        high += 0.001
    stretched = ((torch.arange(head_size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return stretched * plain / rope.factor + (1 - stretched) * plain
